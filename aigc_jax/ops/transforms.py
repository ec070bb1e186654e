"""Differentiable geometric transformations with parameters per example.

Shapes: B batch, … spatial axes, C channels; D number of spatial axes.
"""

import jax
import jax.numpy as jnp

from aigc_jax.ops.per_example import expand_like


def flip(x: jax.Array, on_B: jax.Array) -> jax.Array:
    """Reverses the last spatial axis (left and right of images) where `on_B`."""
    return jnp.where(expand_like(on_B, x), x[..., ::-1, :], x)


def rotate90(x_BHWC: jax.Array, turns_B: jax.Array) -> jax.Array:
    """Rotates images `turns_B` times by 90° anticlockwise; 0 or 2 times if not square."""
    turned = x_BHWC
    for turns in (1, 2, 3) if x_BHWC.shape[1] == x_BHWC.shape[2] else (2,):
        on = expand_like(turns_B == turns, x_BHWC)
        turned = jnp.where(on, jnp.rot90(x_BHWC, turns, (1, 2)), turned)
    return turned


def translate(x: jax.Array, shift_BD: jax.Array) -> jax.Array:
    """Shifts by integer pixels along each spatial axis; reflects at the borders."""
    axes = "bhwdefgijk"[: x.ndim - 1] + "c"
    for axis, letter in enumerate(axes[1:-1], 1):
        size = x.shape[axis]
        source_BN = mirror(jnp.arange(size) - shift_BD[:, axis - 1, None], size)
        # A product with a permutation matrix, as the gradient of a gather is slow on a CPU.
        pick_BNM = jax.nn.one_hot(source_BN, size, dtype=x.dtype)
        sum_over = f"bn{letter},{axes}->{axes.replace(letter, 'n')}"
        x = jnp.einsum(sum_over, pick_BNM, x, precision="highest")
    return x


def affine(x_BHWC: jax.Array, matrix_B22: jax.Array) -> jax.Array:
    """Transforms images about the centre by (down, right) ↦ matrix · (down, right), bilinearly.

    Args:
      x_BHWC: images, reflected at the borders.
      matrix_B22: invertible matrices. The identity returns an image bit for bit.
    """
    _, h, w, _ = x_BHWC.shape
    centre = jnp.array([(h - 1) / 2, (w - 1) / 2])
    down, right = jnp.meshgrid(jnp.arange(h) - centre[0], jnp.arange(w) - centre[1], indexing="ij")
    m = _inverse(matrix_B22)[:, :, :, None, None]
    # Explicit sums, as some devices round matrix products to bfloat16.
    y = mirror(m[:, 0, 0] * down + m[:, 0, 1] * right + centre[0], h)
    x = mirror(m[:, 1, 0] * down + m[:, 1, 1] * right + centre[1], w)
    top, left = jnp.floor(y), jnp.floor(x)
    part_y, part_x = (y - top)[..., None], (x - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    bottom, far = jnp.minimum(top + 1, h - 1), jnp.minimum(left + 1, w - 1)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return jax.vmap(lambda image, r, c: image[r, c])(x_BHWC, row, column)

    upper = at(top, left) * (1 - part_x) + at(top, far) * part_x
    lower = at(bottom, left) * (1 - part_x) + at(bottom, far) * part_x
    return (upper * (1 - part_y) + lower * part_y).astype(x_BHWC.dtype)


def cut_out(x: jax.Array, on_B: jax.Array, centre_BD: jax.Array) -> jax.Array:
    """Sets a box of half the sides to 0 where `on_B`; its centre is −1…1 of each spatial axis."""
    inside = expand_like(on_B, x)
    for axis, size in enumerate(x.shape[1:-1], 1):
        middle = (centre_BD[:, axis - 1] + 1) / 2 * size
        near = jnp.abs(jnp.arange(size) + 0.5 - middle[:, None]) < size / 4
        shape = [len(x), *[1] * (x.ndim - 1)]
        shape[axis] = size
        inside = inside & near.reshape(shape)
    return jnp.where(inside, 0, x)


def mirror(position: jax.Array, size: int) -> jax.Array:
    """Reflects positions outside 0…size − 1 at the first and the last pixel."""
    period = max(2 * (size - 1), 1)
    position = position % period
    return jnp.minimum(position, period - position) if size > 1 else jnp.zeros_like(position)


def _inverse(matrix_B22: jax.Array) -> jax.Array:
    a, b, c, d = (matrix_B22[:, i, j] for i in (0, 1) for j in (0, 1))
    inverse = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2)
    return inverse / (a * d - b * c)[:, None, None]
