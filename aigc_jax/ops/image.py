"""Images between the bytes in which they are kept and the floats in which they are modelled."""

import jax
import jax.numpy as jnp


def to_signed(image: jax.Array) -> jax.Array:
    """uint8 0…255 → float32 in [−1, 1]; floats, such as latents, stay what they are."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    return image.astype(jnp.float32) / 127.5 - 1


def to_bytes(x: jax.Array) -> jax.Array:
    """Floats in [−1, 1] → uint8, rounded to the nearest and clipped."""
    return jnp.round(jnp.clip(x * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of each image (B,): −10 log₁₀ of the mean squared error.

    Images are in [0, 1]. Equal ones have 100 dB, and none has more.
    """
    error_B = ((x - y) ** 2).reshape(x.shape[0], -1).mean(-1)
    return -10 * jnp.log10(jnp.maximum(error_B, 1e-10))
