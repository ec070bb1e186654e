"""Attention masks as a spec: causal, sliding window, segments.

Shapes: B batch, T queries, S keys.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_BT", "key_BS", "segments", "dynamic_window"],
    meta_fields=["causal", "window", "contiguous"],
)
@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Attention mask as a spec, which kernels consume; only the reference materialises it.

    Attributes:
      query_BT: positions of the queries; the batch may be 1.
      key_BS: positions of the keys; −1 is padding, which is always masked.
      segments: segment ids of queries (B, T) and keys (B, S); attention stays within a segment.
      causal: whether later positions are masked.
      window: number of positions that a query attends to, including its own; 0 disables.
      dynamic_window: a traced scalar that replaces `window`.
      contiguous: whether queries and keys are the same tokens, segment after segment with positions
        counting up in each, so that later tokens of a row are the future or another segment.
    """

    query_BT: jax.Array
    key_BS: jax.Array
    segments: tuple[jax.Array, jax.Array] | None = None
    causal: bool = True
    window: int = 0
    dynamic_window: jax.Array | None = None
    contiguous: bool = False

    def key_range(self, start: int, stop: int) -> tuple[int, int]:
        """Returns (first, end) of the keys that the queries from start to stop may attend to."""
        if not (self.contiguous and self.causal):
            return 0, self.key_BS.shape[1]
        return (max(start - self.window + 1, 0) if self.window else 0), stop

    def dense(self, queries: slice = slice(None), keys: slice = slice(None)) -> jax.Array:
        """Materialises the mask (B, T, S), or a slice of it; True where attended to."""
        segments = self.segments and (self.segments[0][:, queries], self.segments[1][:, keys])
        query_BT, key_BS = self.query_BT[:, queries], self.key_BS[:, keys]
        window = self.window if self.dynamic_window is None else self.dynamic_window
        return make_mask(query_BT, key_BS, segments, causal=self.causal, window=window)


def make_mask(
    query_BT: jax.Array,
    key_BS: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None = None,
    *,
    causal: bool = True,
    window: int | jax.Array = 0,
) -> jax.Array:
    """Returns a boolean mask (B, T, S), True where a query may attend to a key.

    Args:
      query_BT: positions of the queries.
      key_BS: positions of the keys; −1 is padding, which is always masked.
      segments: segment ids of queries (B, T) and keys (B, S); attention stays within a segment.
      causal: whether later positions are masked.
      window: number of positions that a query attends to, including its own; 0 disables. May be
        traced.
    """
    ahead = query_BT[:, :, None] - key_BS[:, None, :]
    allowed = jnp.broadcast_to(key_BS[:, None, :] >= 0, ahead.shape)
    if causal:
        allowed &= ahead >= 0
    if not (isinstance(window, int) and window == 0):
        span = jnp.where(jnp.asarray(window) > 0, window, np.iinfo(np.int32).max)
        allowed &= jnp.abs(ahead) < span
    if segments is not None:
        allowed &= segments[0][:, :, None] == segments[1][:, None, :]
    return allowed


def segment_positions(segments_BT: jax.Array) -> jax.Array:
    """Returns each token's position in its own segment; −1 for padding, whose segment id is 0."""
    index = jnp.broadcast_to(jnp.arange(segments_BT.shape[1]), segments_BT.shape)
    before = jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    start = jax.lax.cummax(jnp.where(segments_BT != before, index, 0), axis=1)
    return jnp.where(segments_BT > 0, index - start, -1)
