"""Scaled dot-product attention, and who may see whom.

Shapes: B batch, T queries, S keys, H query heads, K key heads (H = K · G), D head size.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.ops import platform
from aigc_jax.ops.attention_forms import MASKED, blockwise, cudnn, splash

# Each gives None for what it cannot do.
FAST = {"blockwise": blockwise, "cudnn": cudnn, "splash": splash}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_BT", "key_BS", "segments", "reach"],
    meta_fields=["causal", "window", "ordered"],
)
@dataclasses.dataclass(frozen=True)
class Sight:
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


def attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    sight: Sight | None = None,
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """softmax(scale · q kᵀ) v as (B, T, H, D); the softmax is in float32.

    Only the plain form can be differentiated forward.

    Args:
      q_BTHD: queries.
      k_BSKD: keys; each serves H / K neighbouring query heads (Ainslie et al. 2023).
      v_BSKD: values.
      sight: which keys a query sees; None: all. A query that sees nothing gets any numbers.
      scale: of the logits; 0: 1/√D.
      softcap: c bounds the logits as c · tanh(logits / c) (Gemma 2); 0: off.
      dropout: one key per example, and the rate at which attention weights are dropped.
    """
    scale = scale or 1 / math.sqrt(q_BTHD.shape[-1])
    fast = FAST.get(platform.form("attention"))
    plain = softcap or dropout is not None or q_BTHD.shape[1] == 1  # one token: nothing to save
    if fast is not None and not plain:
        y = fast(q_BTHD, k_BSKD, v_BSKD, sight, scale)
        if y is not None:
            return y
    mask_BTS = None if sight is None else sight.mask_BTS()
    return reference(q_BTHD, k_BSKD, v_BSKD, mask_BTS, scale, softcap, dropout)


def reference(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    mask_BTS: jax.Array | None,
    scale: float,
    softcap: float = 0.0,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """`attention` as its formula, with all T × S logits at once."""
    b, t, h, d = q_BTHD.shape
    k = k_BSKD.shape[2]
    q = q_BTHD.reshape(b, t, k, h // k, d)
    logits = jnp.einsum("btkgd,bskd->bkgts", q, k_BSKD, preferred_element_type=jnp.float32)
    logits *= scale
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    if mask_BTS is not None:
        logits = jnp.where(mask_BTS[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, -1)
    if dropout is not None:
        key_B, rate = dropout
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, weights.shape[1:]))(key_B)
        weights = jnp.where(keep, weights / (1 - rate), 0)
    y = jnp.einsum("bkgts,bskd->btkgd", weights.astype(v_BSKD.dtype), v_BSKD)
    return y.reshape(b, t, h, d)


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
