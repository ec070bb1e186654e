"""Basic layers: dense, LoRA, convolution, norms, dropout, sub-pixel upsampling."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.ops import dispatch, norm
from aigc_jax.ops.activation import gelu
from aigc_jax.ops.convolution import Padding, convolution, depth_to_space
from aigc_jax.ops.dense import dense
from aigc_jax.ops.norm import layer_norm, rms_norm

Initializer = nn.initializers.Initializer
Axes = tuple[str | None, ...]  # logical axes of a parameter: see distributed/logical_axes.py


def partitioned(init: Callable[..., jax.Array], axes: Axes) -> Callable[..., Any]:
    """Returns an initialiser that boxes a parameter with its logical axes.

    `Module.param` unboxes it; Flax's own annotation claims that it returns the box.
    """
    return nn.with_logical_partitioning(init, axes)


MAX_UNROLLED = 8  # maximum layers per iteration of the scan where unrolling is faster


class Dropout(nn.Module):
    """Dropout with one key per example, independent of the sharding of a batch."""

    rate: float

    @nn.compact
    def __call__(self, x_B: jax.Array, key_B: jax.Array | None) -> jax.Array:
        """Applies dropout; the identity without keys (evaluation, sampling)."""
        if key_B is None or self.rate == 0:
            return x_B
        site = zlib.crc32("/".join(map(str, self.path)).encode()) & 0x7FFFFFFF

        def keep(key):
            return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - self.rate, x_B.shape[1:])

        return jnp.where(jax.vmap(keep)(key_B), x_B / (1 - self.rate), 0)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapter of a frozen kernel (Hu et al. 2021): y += x a b · alpha / rank."""

    rank: int
    alpha: float
    dropout: float = 0.0


class Dense(nn.Module):
    """Dense layer: x @ kernel + bias.

    Attributes:
      features: size of the last axis of the output.
      use_bias: whether there is a bias.
      kernel_init: initialiser of the kernel (inputs, features).
      dtype: dtype of the computation.
      kernel_axes: logical axes of the kernel.
      bias_axes: logical axis of the bias.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32
    kernel_axes: Axes = ("dense_in", "dense_out")
    bias_axes: Axes = ("bias",)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = partitioned(self.kernel_init, self.kernel_axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = dense(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        start = partitioned(nn.initializers.zeros, self.bias_axes)
        return y + self.param("bias", start, (self.features,)).astype(self.dtype)


class Linear(Dense):
    """Dense layer with an optional low-rank adapter.

    The adapter's factors are in the collection "lora", so that the kernel can be frozen.
    """

    use_bias: bool = False
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array, key_B: jax.Array | None = None) -> jax.Array:
        y = super().__call__(x)
        if self.lora is None:
            return y
        rank, x = self.lora.rank, x.astype(self.dtype)
        start_a = partitioned(self._uniform, ("inputs", "rank"))
        start_b = partitioned(jnp.zeros, ("rank", "outputs"))
        a = self.variable("lora", "lora_a", start_a, (x.shape[-1], rank)).value
        b = self.variable("lora", "lora_b", start_b, (rank, self.features)).value
        x = Dropout(self.lora.dropout, name="lora_dropout")(x, key_B)
        return y + (x @ a.astype(self.dtype)) @ b.astype(self.dtype) * (self.lora.alpha / rank)

    def _uniform(self, shape: tuple[int, int]) -> jax.Array:
        limit = shape[0] ** -0.5  # a is random and b is zero: the adapter is initially 0
        return jax.random.uniform(self.make_rng("params"), shape, minval=-limit, maxval=limit)


class Conv(nn.Module):
    """Convolution with bias over any number of spatial axes: (B, …, C) → (B, …', features).

    Attributes:
      features: output channels.
      kernel_size: one entry per spatial axis.
      strides: one per spatial axis; 1 by default.
      padding: "SAME" as in TensorFlow, "VALID", or (before, after) of each spatial axis.
      kernel_init: initialiser of the kernel (*kernel_size, C, features).
      dtype: dtype of the computation.
      kernel_axes: logical axes of the kernel's last two axes; its spatial axes are replicated.
    """

    features: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: Padding = "SAME"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: jnp.dtype = jnp.float32
    kernel_axes: Axes = ("conv_in", "conv_out")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spatial = len(self.kernel_size)
        init = partitioned(self.kernel_init, (*[None] * spatial, *self.kernel_axes))
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        strides = self.strides or (1,) * spatial
        y = convolution(x.astype(self.dtype), kernel, strides, self.padding)
        start = partitioned(nn.initializers.zeros, ("bias",))
        return y + self.param("bias", start, (self.features,)).astype(self.dtype)


class Bias(nn.Module):
    """Adds a bias along the last axis, whose logical axis is `axes`."""

    axes: Axes = ("bias",)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.param("bias", partitioned(nn.initializers.zeros, self.axes), x.shape[-1:])


class Norm(nn.Module):
    """RMS norm (Zhang & Sennrich 2019) or layer norm over the last axis, in float32.

    Attributes:
      kind: "rmsnorm" or "layernorm".
      eps: added to the mean square.
      use_bias: whether a layer norm has a bias.
      offset: whether the scale is 1 + the learned parameter, as in Gemma.
      learned: whether there is a learned scale.
      dtype: dtype of the output.
    """

    kind: str = "rmsnorm"
    eps: float = 1e-6
    use_bias: bool = True
    offset: bool = False
    dtype: jnp.dtype = jnp.float32
    learned: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, scale = x.shape[-1:], 1.0
        if self.learned:
            start = nn.initializers.zeros if self.offset else nn.initializers.ones
            scale = self.param("scale", partitioned(start, ("norm",)), shape) + float(self.offset)
        x = (layer_norm if self.kind == "layernorm" else rms_norm)(x, self.eps) * scale
        if self.kind == "layernorm" and self.use_bias:
            x += self.param("bias", partitioned(nn.initializers.zeros, ("bias",)), shape)
        return x.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group norm with a learned scale and bias, in float32.

    Attributes:
      groups: number of groups of consecutive channels.
      eps: added to the variance.
      dtype: dtype of the output.
    """

    groups: int
    eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BC: jax.Array) -> jax.Array:
        shape = x_BC.shape[-1:]
        scale = self.param("scale", partitioned(nn.initializers.ones, ("norm",)), shape)
        bias = self.param("bias", partitioned(nn.initializers.zeros, ("bias",)), shape)
        return norm.group_norm(x_BC, scale, bias, self.groups, self.eps).astype(self.dtype)


class SubPixelConv(nn.Module):
    """Doubles every spatial axis: a transposed convolution of stride 2 in its sub-pixel form."""

    features: int
    kernel: int = 3
    dtype: jnp.dtype = jnp.float32
    kernel_axes: Axes = ("conv_in", "conv_out")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spatial = x.ndim - 2
        conv = Conv(
            2**spatial * self.features,
            (self.kernel,) * spatial,
            dtype=self.dtype,
            kernel_axes=self.kernel_axes,
            name="conv",
        )
        return depth_to_space(conv(x))


class Residual(nn.Module):
    """Residual block of two convolutions of size 3; initially the identity."""

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, size = with_logical_constraint(x, "batch"), (3,) * (x.ndim - 2)
        y = gelu(make_group_norm(self.channels, self.dtype, name="norm_in")(x))
        y = Conv(self.channels, size, dtype=self.dtype, name="conv_in")(y)
        y = gelu(make_group_norm(self.channels, self.dtype, name="norm_out")(y))
        start = nn.initializers.zeros
        conv = Conv(self.channels, size, kernel_init=start, dtype=self.dtype, name="conv_out")
        return x + conv(y)


def make_group_norm(
    channels: int, dtype: jnp.dtype, name: str | None = None, groups: int = 0, eps: float = 1e-5
) -> GroupNorm:
    """Returns a group norm; 0 groups: at most 32 groups of at least 4 channels."""
    if not groups:
        groups = next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)
    return GroupNorm(groups, eps, dtype, name=name)


def scan_unroll(given: int, layers: int) -> int:
    """Returns the number of layers per iteration of the scan: `given`, or 0 by platform.

    On a CPU, gradients of stacked parameters are slower in an unrolled loop.
    """
    if given or dispatch.implementation("layers") == "rolled":
        return given or 1
    return layers if layers <= MAX_UNROLLED else 1


def time_embedding(
    time_B: jax.Array, size: int, *, shift: float = 0.0, sin_first: bool = False
) -> jax.Array:
    """Returns the sinusoidal embedding of times, (B, size) float32.

    Args:
      time_B: times in 0…1000.
      size: embedding size; an odd one is padded with a zero.
      shift: frequency i is 10,000^(−i / (size / 2 − shift)).
      sin_first: whether sines precede cosines.
    """
    half = size // 2
    frequency = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / (half - shift))
    angle = time_B[:, None].astype(jnp.float32) * frequency
    parts = (jnp.sin(angle), jnp.cos(angle)) if sin_first else (jnp.cos(angle), jnp.sin(angle))
    return jnp.pad(jnp.concatenate(parts, -1), ((0, 0), (0, size % 2)))
