"""Images whose sides cannot be halved evenly: made a little larger inside, and cut again.

Shapes: B batch, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError


def coarse_size(
    size: tuple[int, int], halvings: int, what: str, *, patch: int = 1
) -> tuple[int, int]:
    """The sides in patches after so many halvings, rounded up.

    Args:
      size: (H, W) of the images.
      halvings: how often they are halved.
      what: the config's fields that say so, for the message.
      patch: the side of a patch in pixels, model.patch_size; 1: pixels are not cut into patches.

    Raises:
      UserError: if a side is too short to be halved so often, or for a patch.
    """
    if min(size) < patch:
        raise UserError(
            f"images of {size[0]}×{size[1]} are smaller than a patch: give model.patch_size"
            f" {min(size)} at most, or prepare larger images with --image_size"
        )
    factor = patch * 2**halvings
    if min(size) < factor:
        cut = f" after being cut into patches of {patch}×{patch}" if patch > 1 else ""
        raise UserError(
            f"images of {size[0]}×{size[1]} cannot be halved {halvings} times{cut}: give {what}"
            " fewer entries, or prepare the images with --image_size"
        )
    return -(-size[0] // factor), -(-size[1] // factor)


def filled_size(
    size: tuple[int, int], halvings: int, what: str, *, patch: int = 1
) -> tuple[int, int]:
    """The least sides, not below `size`, of which `coarse_size` is an even part; args as there."""
    factor = patch * 2**halvings
    h, w = coarse_size(size, halvings, what, patch=patch)
    return h * factor, w * factor


def crop(x_BHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The middle of that size."""
    if x_BHWC.shape[1:3] == tuple(size):
        return x_BHWC
    top, left = (x_BHWC.shape[1] - size[0]) // 2, (x_BHWC.shape[2] - size[1]) // 2
    return x_BHWC[:, top : top + size[0], left : left + size[1]]


def fill(x_BHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
    """As large as `size`, in the middle, by repeating the border; the inverse of `crop`."""
    rows, columns = size[0] - x_BHWC.shape[1], size[1] - x_BHWC.shape[2]
    if not rows and not columns:
        return x_BHWC
    sides = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    return jnp.pad(x_BHWC, ((0, 0), *sides, (0, 0)), mode="edge")
