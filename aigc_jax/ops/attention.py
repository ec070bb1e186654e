"""Scaled dot-product attention, who may see whom, and rotary positions.

Shapes: B batch, T queries, S keys, H query heads, K key heads (H = K · G), D head size.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

MASKED = -1e30  # finite: a query that sees nothing gets numbers, not NaN


def attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    mask_BTS: jax.Array | None = None,
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """softmax(scale · q kᵀ) v as (B, T, H, D); the softmax is in float32.

    Args:
      q_BTHD: queries.
      k_BSKD: keys; each serves H / K neighbouring query heads (Ainslie et al. 2023).
      v_BSKD: values.
      mask_BTS: which keys a query sees; its batch may be 1. None: all.
      scale: of the logits; 0: 1/√D.
      softcap: c bounds the logits as c · tanh(logits / c) (Gemma 2); 0: off.
      dropout: one key per example, and the rate at which attention weights are dropped.
    """
    b, t, h, d = q_BTHD.shape
    k = k_BSKD.shape[2]
    q = q_BTHD.reshape(b, t, k, h // k, d)
    logits = jnp.einsum("btkgd,bskd->bkgts", q, k_BSKD, preferred_element_type=jnp.float32)
    logits *= scale or 1 / math.sqrt(d)
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


def rotate(
    x_BTHD: jax.Array, position_BT: jax.Array, frequencies: np.ndarray, scale: float = 1.0
) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), halves rotated against each other.

    Args:
      x_BTHD: queries or keys.
      position_BT: their positions.
      frequencies: (D / 2,) radians per position, from `rotary_frequencies`.
      scale: of the result.
    """
    angle = position_BT[:, :, None, None].astype(jnp.float32) * jnp.asarray(
        frequencies, jnp.float32
    )
    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    a, b = jnp.split(x_BTHD.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x_BTHD.dtype)


def rotary_frequencies(
    head_dim: int,
    theta: float,
    *,
    scaling: str = "none",
    factor: float = 1.0,
    original_context: int = 0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> tuple[np.ndarray, float]:
    """Radians per position (D / 2,), and the factor of the rotated vectors.

    Args:
      head_dim: D.
      theta: the base; frequency i is θ^(−2i/D).
      scaling: how longer texts than those of pretraining are fitted in: "linear" divides all
        frequencies (Chen et al. 2023), "llama3" the low ones only (Llama 3.1), "yarn" ramps between
        the two and sharpens attention (Peng et al. 2023).
      factor: how many times longer.
      original_context: tokens of a text in pretraining.
      low_freq_factor: llama3: waves longer than original_context / this are divided.
      high_freq_factor: llama3: waves shorter than original_context / this are kept.
      beta_fast: yarn: frequencies with more turns than this in the original context are kept.
      beta_slow: yarn: those with fewer turns are divided.
    """
    kept = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    divided = kept / factor
    if scaling == "none":
        return kept, 1.0
    if scaling == "linear":
        return divided, 1.0
    turns = original_context * kept / (2 * np.pi)  # in the original context
    if scaling == "llama3":
        share = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        share = np.clip(share, 0, 1)
        return (1 - share) * divided + share * kept, 1.0

    def dimension(rotations: float) -> float:  # whose frequency makes so many turns
        ratio = original_context / (rotations * 2 * np.pi)
        return head_dim * math.log(ratio) / (2 * math.log(theta))

    low = max(math.floor(dimension(beta_fast)), 0)
    high = min(math.ceil(dimension(beta_slow)), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return ramp * divided + (1 - ramp) * kept, 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
