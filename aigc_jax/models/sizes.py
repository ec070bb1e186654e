"""Images whose sides cannot be halved evenly: made a little larger inside, and cut again.

Shapes: B batch, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp

from aigc_jax.errors import UserError


def coarse_size(size: tuple[int, int], halvings: int, what: str) -> tuple[int, int]:
    """The sides after so many halvings, rounded up.

    Args:
      size: (H, W) of the images.
      halvings: how often they are halved.
      what: the config's field that says so, for the message.

    Raises:
      UserError: if a side is too short to be halved so often.
    """
    factor = 2**halvings
    if min(size) < factor:
        raise UserError(
            f"images of {size[0]}×{size[1]} cannot be halved {halvings} times: give {what} fewer"
            " entries, or prepare the images with --image_size"
        )
    return -(-size[0] // factor), -(-size[1] // factor)


def crop(x_BHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The middle of that size."""
    top, left = (x_BHWC.shape[1] - size[0]) // 2, (x_BHWC.shape[2] - size[1]) // 2
    return x_BHWC[:, top : top + size[0], left : left + size[1]]


def fill(x_BHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
    """As large as `size`, in the middle, by repeating the border; the inverse of `crop`."""
    rows, columns = size[0] - x_BHWC.shape[1], size[1] - x_BHWC.shape[2]
    if not rows and not columns:
        return x_BHWC
    sides = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    return jnp.pad(x_BHWC, ((0, 0), *sides, (0, 0)), mode="edge")
