"""Padding of inputs whose spatial sizes cannot be halved evenly, and cropping of the outputs.

Shapes: B batch, … spatial axes, C channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError


def coarse_size(
    size: Sequence[int], halvings: int, fields: str, *, patch: int = 1
) -> tuple[int, ...]:
    """The spatial sizes in patches after a number of halvings, rounded up.

    Args:
      size: spatial sizes of the inputs, such as (H, W).
      halvings: how often they are halved.
      fields: the config fields that say so, for the message.
      patch: the side of a patch, model.patch_size; 1: inputs are not cut into patches.

    Raises:
      UserError: if a size is too small for the halvings, or for a patch.
    """
    shape = "×".join(map(str, size))
    if min(size) < patch:
        raise UserError(
            f"inputs of {shape} are smaller than model.patch_size={patch}: set model.patch_size"
            f" to {min(size)} at most, or take larger inputs (images: --image_size of prepare)"
        )
    factor = patch * 2**halvings
    if min(size) < factor:
        patches = f" after being cut into patches of side {patch}" if patch > 1 else ""
        raise UserError(
            f"inputs of {shape} cannot be halved {halvings} times{patches}: give {fields} fewer"
            " entries, or take larger inputs (images: --image_size of prepare)"
        )
    return tuple(-(-n // factor) for n in size)


def filled_size(
    size: Sequence[int], halvings: int, fields: str, *, patch: int = 1
) -> tuple[int, ...]:
    """The smallest spatial sizes, not below `size`, that `coarse_size` divides; args as there."""
    factor = patch * 2**halvings
    return tuple(n * factor for n in coarse_size(size, halvings, fields, patch=patch))


def crop(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """The centre of `x` (B, …, C) with these spatial sizes."""
    for axis, n in enumerate(size, 1):
        start = (x.shape[axis] - n) // 2
        x = jax.lax.slice_in_dim(x, start, start + n, axis=axis)
    return x


def fill(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """`x` (B, …, C) centred in these spatial sizes, its border repeated; `crop` undoes it."""
    extra = [n - m for n, m in zip(size, x.shape[1:-1], strict=True)]
    if not any(extra):
        return x
    sides = [(n // 2, n - n // 2) for n in extra]
    return jnp.pad(x, [(0, 0), *sides, (0, 0)], mode="edge")
