"""Rotary position embedding, RoPE (Su et al. 2021).

Shapes: B batch, T tokens, H heads, D head size.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def rotate(
    x_BTHD: jax.Array, position_BT: jax.Array, frequencies: np.ndarray, scale: float = 1.0
) -> jax.Array:
    """Applies rotary position embedding (Su et al. 2021); pairs are i and i + D/2.

    Args:
      x_BTHD: queries or keys.
      position_BT: positions of the tokens.
      frequencies: (D / 2,) radians per position, from `rotary_frequencies`.
      scale: factor of the result.
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
    """Returns radians per position (D / 2,), and the factor of the rotated vectors.

    Args:
      head_dim: D.
      theta: the base; frequency i is θ^(−2i/D).
      scaling: extension to contexts longer than in pretraining: "linear" divides all frequencies
        (Chen et al. 2023), "llama3" the low ones only (Llama 3.1), "yarn" interpolates between the
        two and sharpens attention (Peng et al. 2023).
      factor: ratio of the extended context to that of pretraining.
      original_context: context of pretraining, in tokens.
      low_freq_factor: llama3: wavelengths above original_context / this are scaled.
      high_freq_factor: llama3: wavelengths below original_context / this are kept.
      beta_fast: yarn: frequencies with more turns than this in the original context are kept.
      beta_slow: yarn: frequencies with fewer turns than this are scaled.
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

    def dimension(rotations: float) -> float:  # index of the frequency with that number of turns
        ratio = original_context / (rotations * 2 * np.pi)
        return head_dim * math.log(ratio) / (2 * math.log(theta))

    low = max(math.floor(dimension(beta_fast)), 0)
    high = min(math.ceil(dimension(beta_slow)), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return ramp * divided + (1 - ramp) * kept, 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
