"""Convolutions, plain and of groups of channels, and resizing by rearranging or weighted means.

Shapes: B batch, H height, W width, C and I channels in, O channels out, r the factor.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from aigc_jax.ops import dispatch
from aigc_jax.ops.dense import dense, guarded

Padding = str | Sequence[tuple[int, int]]  # "SAME", "VALID", or zeros before and after each side


def convolution(
    x_BHWC: jax.Array,
    kernel_HWIO: jax.Array,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    groups: int = 1,
) -> jax.Array:
    """A convolution, (B, H, W, C) → (B, H', W', O); what is a matrix product is computed as one.

    Args:
      x_BHWC: the images.
      kernel_HWIO: height, width, C / groups, O.
      strides: of rows and columns.
      padding: "SAME" as in TensorFlow, "VALID", or given.
      groups: of channels, each of which sees itself only.
    """
    sizes = kernel_HWIO.shape[:2]
    exact = all(side % n == 0 for side, n in zip(x_BHWC.shape[1:3], sizes, strict=True))
    if sizes == tuple(strides) and groups == 1 and exact and padding in ("SAME", "VALID"):
        return _patches_times(x_BHWC, kernel_HWIO)
    stride = strides[0]
    divides = strides[1] == stride and not any(side % stride for side in x_BHWC.shape[1:3])
    if (
        stride > 1
        and divides
        and groups == 1
        and dispatch.implementation("strided") == "space_to_depth"
    ):
        y = _strided(x_BHWC, kernel_HWIO, stride, padding)
        if y is not None:
            return y
    form = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x_BHWC, kernel_HWIO, strides, padding, dimension_numbers=form, feature_group_count=groups
    )
    return guarded(y) if dispatch.implementation("convolution") == "guarded" else y


def _strided(
    x_BHWC: jax.Array, kernel_HWIO: jax.Array, r: int, padding: Padding
) -> jax.Array | None:
    """A convolution of stride r as one of stride 1, of squares of r × r pixels.

    The kernel gets zeros until it consists of such squares, too. XLA's CPU compiler takes 5 to 15
    times as long for the gradient of a strided convolution's gradient, which penalties of a
    critic's slope need. None where a kernel could see padding only: jaxlib 0.10.2 computes that
    gradient wrongly.
    """
    sides, sizes = x_BHWC.shape[1:3], kernel_HWIO.shape[:2]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(sides, sizes, (r, r), padding)
    zeros, pads = [], []
    for side, size, (before, after) in zip(sides, sizes, padding, strict=True):
        first = -before % r
        last = -(first + size) % r
        squares, outputs = (first + size + last) // r, (side + before + after - size) // r + 1
        zeros.append((first, last))
        pads.append(((before + first) // r, outputs - 1 + squares - (before + first + side) // r))
        if not all(0 <= pad < squares for pad in pads[-1]):
            return None
    kernel = jnp.pad(kernel_HWIO, [*zeros, (0, 0), (0, 0)])
    (h, w), (i, o) = (n // r for n in kernel.shape[:2]), kernel.shape[2:]
    kernel = kernel.reshape(h, r, w, r, i, o).transpose(0, 2, 1, 3, 4, 5)
    return convolution(space_to_depth(x_BHWC, r), kernel.reshape(h, w, r * r * i, o), padding=pads)


def _patches_times(x_BHWC: jax.Array, kernel_HWIO: jax.Array) -> jax.Array:
    """A convolution whose steps are as large as its kernel: a product of each patch, or pixel."""
    (b, h, w, c), (p, q, _, o) = x_BHWC.shape, kernel_HWIO.shape
    patches = x_BHWC.reshape(b, h // p, p, w // q, q, c).transpose(0, 1, 3, 2, 4, 5)
    return dense(patches.reshape(b, h // p, w // q, p * q * c), kernel_HWIO.reshape(-1, o))


def depth_to_space(x_BHWC: jax.Array, factor: int = 2) -> jax.Array:
    """(B, H, W, C·r²) → (B, H·r, W·r, C).

    A stride-1 convolution followed by this is a transposed convolution of stride r in its sub-pixel
    form (Shi et al. 2016), many times faster on a CPU than the strided one.
    """
    b, h, w, c = x_BHWC.shape
    x = x_BHWC.reshape(b, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * factor, w * factor, c // factor**2)


def space_to_depth(x_BHWC: jax.Array, factor: int = 2) -> jax.Array:
    """(B, H, W, C) → (B, H/r, W/r, C·r²), which `depth_to_space` undoes."""
    b, h, w, c = x_BHWC.shape
    x = x_BHWC.reshape(b, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // factor, w // factor, c * factor**2)


def upsample(x_BHWC: jax.Array, factor: int = 2) -> jax.Array:
    """Each pixel repeated r × r times."""
    return x_BHWC.repeat(factor, axis=1).repeat(factor, axis=2)


def downsample(x_BHWC: jax.Array, factor: int = 2) -> jax.Array:
    """The mean of each r × r square."""
    b, h, w, c = x_BHWC.shape
    return x_BHWC.reshape(b, h // factor, factor, w // factor, factor, c).mean((2, 4))


def bilinear_twice(x_BHWC: jax.Array) -> jax.Array:
    """Twice the height and width by bilinear interpolation between the centres of the pixels."""
    for axis in (1, 2):
        before, after = _neighbours(x_BHWC, axis)
        pair = [0.75 * x_BHWC + 0.25 * before, 0.75 * x_BHWC + 0.25 * after]
        shape = list(x_BHWC.shape)
        shape[axis] *= 2
        x_BHWC = jnp.stack(pair, axis + 1).reshape(shape)
    return x_BHWC


def bilinear_half(x_BHWC: jax.Array) -> jax.Array:
    """Half the height and width, which are even, by the filter (1, 3, 3, 1) / 8 along each."""
    for axis in (1, 2):
        shape = list(x_BHWC.shape)
        pairs = x_BHWC.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
        first, second = jnp.take(pairs, 0, axis + 1), jnp.take(pairs, 1, axis + 1)
        before, _ = _neighbours(second, axis, first)
        _, after = _neighbours(first, axis, second)
        x_BHWC = 0.375 * (first + second) + 0.125 * (before + after)
    return x_BHWC


def _neighbours(
    x: jax.Array, axis: int, border: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """What stands before and after each place; at the borders what `border`, or x, has there."""
    border, size = x if border is None else border, x.shape[axis]
    first, last = (jax.lax.slice_in_dim(border, i, i + 1, axis=axis) for i in (0, size - 1))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
    return before, after


def grouped_convolution(x_BHWC: jax.Array, kernel_HWIO: jax.Array) -> jax.Array:
    """A convolution of stride 1, in which each group of I channels sees itself only.

    On a CPU, XLA's gradients of grouped convolutions take 20 to 80 times as long as those of one
    convolution whose kernel has zeros between the groups, which is what it becomes there.

    Args:
      x_BHWC: C is a multiple of I.
      kernel_HWIO: O is a multiple of C / I; the first outputs are the first group's.
    """
    height, width, i, outputs = kernel_HWIO.shape
    groups = x_BHWC.shape[-1] // i
    if groups == 1 or dispatch.implementation("grouped_convolution") == "reference":
        return convolution(x_BHWC, kernel_HWIO, groups=groups)
    blocks = kernel_HWIO.reshape(height, width, 1, i, groups, outputs // groups)
    whole = jnp.eye(groups, dtype=blocks.dtype)[:, None, :, None] * blocks
    return convolution(x_BHWC, whole.reshape(height, width, groups * i, outputs))


def depthwise(x_BHWC: jax.Array, kernel_khwC: jax.Array, stride: int = 1) -> jax.Array:
    """Each channel filtered by itself, with TensorFlow's "SAME" padding.

    On a CPU as a sum of shifted images, which XLA fuses into one loop: 3 to 40 times faster than
    its grouped convolution.

    Args:
      x_BHWC: the images.
      kernel_khwC: (height, width, 1, C).
      stride: of the rows and columns of the result.
    """
    sizes, strides = kernel_khwC.shape[:2], (stride, stride)
    if dispatch.implementation("depthwise") == "reference":
        return convolution(x_BHWC, kernel_khwC, strides, groups=x_BHWC.shape[-1])
    pads = jax.lax.padtype_to_pads(x_BHWC.shape[1:3], sizes, strides, "SAME")
    rows, columns = (-(-n // stride) for n in x_BHWC.shape[1:3])
    x, total = jnp.pad(x_BHWC, [(0, 0), *pads, (0, 0)]), jnp.zeros((), x_BHWC.dtype)
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            bottom, right = i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1
            total += x[:, i:bottom:stride, j:right:stride] * kernel_khwC[i, j, 0]
    return total
