"""Padding of inputs to spatial sizes that can be halved, and cropping of outputs.

Shapes: B batch, … spatial axes, C channels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError


def coarse_size(
    size: Sequence[int], halvings: int, fields: str, *, patch: int = 1
) -> tuple[int, ...]:
    """Returns the spatial sizes in patches after a number of halvings, rounded up.

    Args:
      size: spatial sizes of the inputs, such as (H, W).
      halvings: number of halvings.
      fields: the config fields that determine `halvings`, for the message.
      patch: side of a patch, model.patch_size; 1 disables patches.

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
    """Returns the smallest sizes ≥ `size` that can be halved evenly; args as in `coarse_size`."""
    factor = patch * 2**halvings
    return tuple(n * factor for n in coarse_size(size, halvings, fields, patch=patch))


def crop(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Returns the centre of `x` (B, …, C) with these spatial sizes."""
    for axis, n in enumerate(size, 1):
        start = (x.shape[axis] - n) // 2
        x = jax.lax.slice_in_dim(x, start, start + n, axis=axis)
    return x


def fill(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Pads `x` (B, …, C) to these spatial sizes by repeating its border; the inverse of `crop`."""
    extra = [n - m for n, m in zip(size, x.shape[1:-1], strict=True)]
    if not any(extra):
        return x
    sides = [(n // 2, n - n // 2) for n in extra]
    return jnp.pad(x, [(0, 0), *sides, (0, 0)], mode="edge")
