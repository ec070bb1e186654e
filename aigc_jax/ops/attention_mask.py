"""Who may see whom in attention.

Shapes: B batch, T queries, S keys.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_BT", "key_BS", "segments", "reach"],
    meta_fields=["causal", "window", "ordered"],
)
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Who sees whom, as a description: only the plain form makes a mask of it.

    Attributes:
      query_BT: positions of the queries; the batch may be 1.
      key_BS: positions of the keys; −1 is padding, which nobody sees.
      segments: the documents of queries (B, T) and keys (B, S); each sees only its own.
      causal: whether the future is hidden.
      window: how many positions a query sees, its own included; 0: all.
      reach: a traced number in place of `window`.
      ordered: whether queries and keys are the same tokens, one document after another, in each of
        which positions count up: what comes later in a row is the future, or another document.
    """

    query_BT: jax.Array
    key_BS: jax.Array
    segments: tuple[jax.Array, jax.Array] | None = None
    causal: bool = True
    window: int = 0
    reach: jax.Array | None = None
    ordered: bool = False

    def keys_of(self, start: int, stop: int) -> tuple[int, int]:
        """The first and the end of the keys that the queries from start to stop may see."""
        if not (self.ordered and self.causal):
            return 0, self.key_BS.shape[1]
        return (max(start - self.window + 1, 0) if self.window else 0), stop

    def mask_BTS(self, queries: slice = slice(None), keys: slice = slice(None)) -> jax.Array:
        """Which keys each query sees; of some of both."""
        segments = self.segments and (self.segments[0][:, queries], self.segments[1][:, keys])
        query_BT, key_BS = self.query_BT[:, queries], self.key_BS[:, keys]
        window = self.window if self.reach is None else self.reach
        return visible(query_BT, key_BS, segments, causal=self.causal, window=window)


def visible(
    query_BT: jax.Array,
    key_BS: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None = None,
    *,
    causal: bool = True,
    window: int | jax.Array = 0,
) -> jax.Array:
    """Which keys each query may attend to, (B, T, S).

    Args:
      query_BT: positions of the queries.
      key_BS: positions of the keys; −1 is padding, which nobody sees.
      segments: the documents of queries (B, T) and keys (B, S); each sees only its own.
      causal: whether the future is hidden.
      window: how many positions a query sees, its own included; 0: all. May be traced.
    """
    ahead = query_BT[:, :, None] - key_BS[:, None, :]
    seen = jnp.broadcast_to(key_BS[:, None, :] >= 0, ahead.shape)
    if causal:
        seen &= ahead >= 0
    if not (isinstance(window, int) and window == 0):
        reach = jnp.where(jnp.asarray(window) > 0, window, np.iinfo(np.int32).max)
        seen &= jnp.abs(ahead) < reach
    if segments is not None:
        seen &= segments[0][:, :, None] == segments[1][:, None, :]
    return seen


def positions_of(segments_BT: jax.Array) -> jax.Array:
    """Each token's place in its own document; −1 for padding, whose segment is 0."""
    index = jnp.broadcast_to(jnp.arange(segments_BT.shape[1]), segments_BT.shape)
    before = jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    start = jax.lax.cummax(jnp.where(segments_BT != before, index, 0), axis=1)
    return jnp.where(segments_BT > 0, index - start, -1)
