"""Convolutions over any number of spatial axes, plain and grouped, and resizing.

Shapes: B batch, … spatial axes (T; H, W; T, H, W), C and I input channels, O output channels, r the
factor of each spatial axis.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from aigc_jax.ops import dispatch
from aigc_jax.ops.dense import dense, single_use_grad

# "SAME" as in TensorFlow, "VALID", or zeros before and after each spatial axis.
Padding = str | Sequence[tuple[int, int]]
Factor = int | Sequence[int]  # one factor for all spatial axes, or one for each


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int] | None = None,
    padding: Padding = "SAME",
    groups: int = 1,
) -> jax.Array:
    """Convolves (B, …, C) with a kernel (…, C / groups, O) to (B, …', O).

    Convolutions that are matrix products are computed as such.

    Args:
      x: one or more spatial axes between batch and channels.
      kernel: as many spatial axes, then C / groups and O.
      strides: stride of each spatial axis; 1 by default.
      padding: padding of the spatial axes.
      groups: number of channel groups, which are convolved independently.
    """
    sizes, sides = kernel.shape[:-2], x.shape[1:-1]
    strides = tuple(strides or (1,) * len(sizes))
    exact = all(side % n == 0 for side, n in zip(sides, sizes, strict=True))
    if sizes == strides and groups == 1 and exact and padding in ("SAME", "VALID"):
        return _patches_times(x, kernel)
    exact = all(side % n == 0 for side, n in zip(sides, strides, strict=True))
    fast = dispatch.implementation("strided") == "space_to_depth"
    if max(strides) > 1 and exact and groups == 1 and fast:
        y = _strided(x, kernel, strides, padding)
        if y is not None:
            return y
    space = tuple(range(1, x.ndim - 1))
    layout = (0, x.ndim - 1, *space)
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            layout, (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)), layout
        ),
        feature_group_count=groups,
    )
    if dispatch.implementation("convolution") == "optimization_barrier":
        return single_use_grad(y)
    return y


def _strided(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding
) -> jax.Array | None:
    """Computes a strided convolution as one of stride 1, over blocks of `strides` pixels.

    The kernel is zero-padded to a multiple of such blocks. On a CPU, XLA's second derivatives of
    strided convolutions, needed by gradient penalties, are 5 to 15 times as slow. Returns None
    where a kernel could cover padding only: jaxlib 0.10.2 computes that gradient wrongly.
    """
    sides, sizes = x.shape[1:-1], kernel.shape[:-2]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(sides, sizes, strides, padding)
    zeros, pads = [], []
    for side, size, r, (before, after) in zip(sides, sizes, strides, padding, strict=True):
        first = -before % r
        last = -(first + size) % r
        blocks, outputs = (first + size + last) // r, (side + before + after - size) // r + 1
        zeros.append((first, last))
        pads.append(((before + first) // r, outputs - 1 + blocks - (before + first + side) // r))
        if not all(0 <= pad < blocks for pad in pads[-1]):
            return None
    kernel = jnp.pad(kernel, [*zeros, (0, 0), (0, 0)])
    kernel = jnp.moveaxis(space_to_depth(jnp.moveaxis(kernel, -1, 0), strides), 0, -1)
    return convolution(space_to_depth(x, strides), kernel, padding=pads)


def _patches_times(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a convolution whose strides equal its kernel's sizes, as a product per patch."""
    *sizes, _, outputs = kernel.shape
    return dense(space_to_depth(x, sizes), kernel.reshape(-1, outputs))


def depth_to_space(x: jax.Array, factor: Factor = 2) -> jax.Array:
    """Rearranges channels into space: (B, …, r… C) → (B, …·r, C).

    A stride-1 convolution followed by this is a transposed convolution of stride r in its sub-pixel
    form (Shi et al. 2016), many times faster on a CPU than the strided one.
    """
    sides, r = x.shape[1:-1], _each(x, factor)
    n, channels = len(r), x.shape[-1] // math.prod(r)
    x = x.reshape(len(x), *sides, *r, channels)
    order = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
    x = x.transpose(0, *order, 1 + 2 * n)
    return x.reshape(len(x), *(s * f for s, f in zip(sides, r, strict=True)), channels)


def space_to_depth(x: jax.Array, factor: Factor = 2) -> jax.Array:
    """Rearranges space into channels: (B, …, C) → (B, …/r, r… C); inverse of `depth_to_space`."""
    r = _each(x, factor)
    n, blocks = len(r), _blocks(x, r)
    y = blocks.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return y.reshape(*y.shape[: n + 1], math.prod(r) * x.shape[-1])


def upsample(x: jax.Array, factor: Factor = 2) -> jax.Array:
    """Repeats each pixel r times along each spatial axis."""
    for axis, r in enumerate(_each(x, factor), 1):
        x = x.repeat(r, axis=axis)
    return x


def downsample(x: jax.Array, factor: Factor = 2) -> jax.Array:
    """Takes the mean of each block of r pixels along each spatial axis."""
    r = _each(x, factor)
    return _blocks(x, r).mean(tuple(range(2, 2 * len(r) + 1, 2)))


def _each(x: jax.Array, factor: Factor) -> tuple[int, ...]:
    """Returns the factor of each spatial axis."""
    return (factor,) * (x.ndim - 2) if isinstance(factor, int) else tuple(factor)


def _blocks(x: jax.Array, factors: tuple[int, ...]) -> jax.Array:
    """Splits every spatial axis: (B, …, C) → (B, s₁ / r₁, r₁, s₂ / r₂, r₂, …, C)."""
    pairs = [(s // r, r) for s, r in zip(x.shape[1:-1], factors, strict=True)]
    return x.reshape(len(x), *itertools.chain(*pairs), x.shape[-1])


def upsample_linear(x: jax.Array) -> jax.Array:
    """Doubles every spatial axis by linear interpolation between the centres of the pixels."""
    for axis in range(1, x.ndim - 1):
        before, after = _neighbours(x, axis)
        pair = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after]
        shape = list(x.shape)
        shape[axis] *= 2
        x = jnp.stack(pair, axis + 1).reshape(shape)
    return x


def downsample_linear(x: jax.Array) -> jax.Array:
    """Halves every spatial axis, whose size is even, by the filter (1, 3, 3, 1) / 8."""
    for axis in range(1, x.ndim - 1):
        shape = list(x.shape)
        pairs = x.reshape(*shape[:axis], shape[axis] // 2, 2, *shape[axis + 1 :])
        first, second = jnp.take(pairs, 0, axis + 1), jnp.take(pairs, 1, axis + 1)
        before, _ = _neighbours(second, axis, first)
        _, after = _neighbours(first, axis, second)
        x = 0.375 * (first + second) + 0.125 * (before + after)
    return x


def _neighbours(
    x: jax.Array, axis: int, border: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the previous and next value of each pixel; at the edges from `border` or x."""
    border, size = x if border is None else border, x.shape[axis]
    first, last = (jax.lax.slice_in_dim(border, i, i + 1, axis=axis) for i in (0, size - 1))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
    return before, after


def grouped_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a grouped convolution of stride 1, with groups of I channels.

    On a CPU, XLA's gradients of grouped convolutions are 20 to 80 times slower than those of a
    dense convolution with zeros between the groups, which is used there.

    Args:
      x: (B, …, C); C is a multiple of I.
      kernel: (…, I, O); O is a multiple of C / I, and the first outputs are the first group's.
    """
    *sizes, i, outputs = kernel.shape
    groups = x.shape[-1] // i
    if groups == 1 or dispatch.implementation("grouped_convolution") == "reference":
        return convolution(x, kernel, groups=groups)
    blocks = kernel.reshape(*sizes, 1, i, groups, outputs // groups)
    full = jnp.eye(groups, dtype=blocks.dtype)[:, None, :, None] * blocks
    return convolution(x, full.reshape(*sizes, groups * i, outputs))


def depthwise(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves each channel separately, with TensorFlow's "SAME" padding.

    On a CPU it is a sum of shifted images, which XLA fuses into one loop: 3 to 40 times faster than
    its grouped convolution.

    Args:
      x: (B, …, C).
      kernel: (…, 1, C).
      stride: stride of all spatial axes.
    """
    sizes, sides = kernel.shape[:-2], x.shape[1:-1]
    strides = (stride,) * len(sizes)
    if dispatch.implementation("depthwise") == "reference":
        return convolution(x, kernel, strides, groups=x.shape[-1])
    pads = jax.lax.padtype_to_pads(sides, sizes, strides, "SAME")
    outputs = [-(-n // stride) for n in sides]
    x, total = jnp.pad(x, [(0, 0), *pads, (0, 0)]), jnp.zeros((), x.dtype)
    for tap in itertools.product(*map(range, sizes)):
        ends = [i + (n - 1) * stride + 1 for i, n in zip(tap, outputs, strict=True)]
        part = tuple(slice(i, end, stride) for i, end in zip(tap, ends, strict=True))
        total += x[:, *part] * kernel[*tap, 0]
    return total
