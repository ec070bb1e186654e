"""Scaled dot-product attention and rotary positions.

Shapes: B batch, T queries, S keys, H heads, D head size.
"""

import jax
import jax.numpy as jnp


def attention(
    q_BTHD: jax.Array, k_BSHD: jax.Array, v_BSHD: jax.Array, mask_BTS: jax.Array | None = None
) -> jax.Array:
    """softmax(q kᵀ / √D) v in float32, as (B, T, H, D); a query sees the keys its mask allows."""
    mask = None if mask_BTS is None else mask_BTS[:, None]
    return jax.nn.dot_product_attention(q_BTHD, k_BSHD, v_BSHD, mask=mask)


def rotate(x_BTHD: jax.Array, position_BT: jax.Array, theta: float = 10_000.0) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), halves rotated against each other."""
    half = x_BTHD.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half) / half)
    angle = position_BT[:, :, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x_BTHD.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x_BTHD.dtype)
