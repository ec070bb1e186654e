"""Positions of patches along any number of spatial axes: sines and cosines, or rotary embedding.

Shapes: B batch, T patches, N heads, D of a head.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.ops.rope import rotary_frequencies, rotate

ROTARY_BASE = 100.0  # patches are few along a side, so the frequencies are high (Heo et al. 2024)


def split_evenly(size: int, parts: int) -> list[int]:
    """Even numbers, as equal as possible, that add up to `size`: one per spatial axis.

    Raises:
      UserError: if `size` has no pair of numbers for each axis.
    """
    pairs = size // 2
    if pairs < parts:
        raise UserError(
            f"positions along {parts} spatial axes take at least {2 * parts} numbers, but there are"
            f" {size}: raise model.width, or lower model.heads"
        )
    return [2 * (pairs // parts + (i < pairs % parts)) for i in range(parts)]


def sincos_positions(sizes: Sequence[int], width: int) -> jax.Array:
    """Sines and cosines of each patch's position along the last axis, then the one before, ….

    Args:
      sizes: patches along each spatial axis.
      width: of a position's encoding.

    Returns:
      (T, width).
    """

    def waves(position: jax.Array, size: int) -> jax.Array:
        frequency = 10_000.0 ** (-np.arange(size // 2) / (size // 2))
        angle = position.reshape(-1, 1) * frequency.astype(np.float32)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

    positions = jnp.indices(sizes)[::-1]
    parts = split_evenly(width, len(sizes))
    encoded = jnp.concatenate([waves(*pair) for pair in zip(positions, parts, strict=True)], -1)
    return jnp.pad(encoded, [(0, 0), (0, width % 2)])


def rotate_axes(x_BTND: jax.Array, positions: Sequence[jax.Array]) -> jax.Array:
    """Rotary embedding: a part of each head rotated by the position along each spatial axis.

    Args:
      x_BTND: queries or keys.
      positions: (1, T) of each axis, the last axis first.
    """
    sizes = split_evenly(x_BTND.shape[-1], len(positions))
    parts = jnp.split(x_BTND, np.cumsum(sizes)[:-1], -1)
    rotated = [
        rotate(part, position, rotary_frequencies(size, ROTARY_BASE)[0])
        for part, position, size in zip(parts, positions, sizes, strict=True)
    ]
    return jnp.concatenate(rotated, -1)
