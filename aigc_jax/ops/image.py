"""Conversion of images between uint8 and float32, and PSNR."""

import jax
import jax.numpy as jnp


def to_signed(image: jax.Array) -> jax.Array:
    """Converts uint8 0…255 to float32 in [−1, 1]; returns floats, such as latents, unchanged."""
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    return image.astype(jnp.float32) / 127.5 - 1


def to_bytes(x: jax.Array) -> jax.Array:
    """Converts floats in [−1, 1] to uint8, rounded to nearest and clipped."""
    return jnp.round(jnp.clip(x * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the peak signal-to-noise ratio of each image (B,), in dB: −10 log₁₀ MSE.

    Images are in [0, 1]. Values are clipped at 100 dB, that of equal images.
    """
    error_B = ((x - y) ** 2).reshape(x.shape[0], -1).mean(-1)
    return -10 * jnp.log10(jnp.maximum(error_B, 1e-10))
