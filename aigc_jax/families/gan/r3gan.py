"""R3GAN (Huang et al. 2024, "The GAN is dead; long live the GAN!"): residual, without any norm.

Blocks of 1×1, grouped 3×3 and 1×1 convolutions whose last one begins as zero (fix-up, Zhang et al.
2019), bilinear resampling between stages, a learned basis instead of dense layers at the coarsest
one. The critic is the generator's mirror.
Shapes: B batch, … one or more spatial axes, such as H, W; C channels, Z latent size, K classes.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.conditioner import class_one_hot
from aigc_jax.nn.layers import Dense
from aigc_jax.nn.padding import coarse_size, crop, fill, filled_size
from aigc_jax.ops.convolution import downsample_linear, grouped_convolution, upsample_linear

SLOPE = 0.2
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # of a kernel before a leaky ReLU (He et al. 2015)


@dataclasses.dataclass(frozen=True)
class R3GANConfig:
    """The section `model` of an R3GAN."""

    latent: int = option(64, low=1)
    channels: tuple[int, ...] = option(
        (64, 64, 32), low=1, nonempty=True
    )  # coarse to fine, ×2 between; the critic mirrors them
    blocks: int = option(2, low=1)  # residual blocks per stage
    expansion: int = option(2, low=1)  # channels inside a block / outside
    group_width: int = option(16, low=1)  # channels of a group inside a block
    conditional: bool = True  # on the class, if the data has classes

    def __post_init__(self):
        for channels in self.channels:
            if channels * self.expansion % self.group_width:
                raise UserError(
                    f"model.channels has {channels}, and {channels} · model.expansion must be"
                    f" divisible by model.group_width={self.group_width}"
                )

    @property
    def kernel_gain(self) -> float:
        """Fix-up's scale of the kernels inside of L blocks with 3 kernels each: L^(−1/4) · gain."""
        return GAIN * (self.blocks * len(self.channels)) ** -0.25


def kernel_init(gain: float) -> nn.initializers.Initializer:
    """Normal with standard deviation gain / √fan-in."""
    return nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


class PointConv(nn.Module):
    """A 1×1 convolution without bias: (…, C) → (…, features).

    Attributes:
      features: channels of the result.
      gain: of the kernel's initial standard deviation, gain / √C; 0: the kernel begins as zeros.
      dtype: of the computation.
      kernel_axes: logical axes of the kernel.
    """

    features: int
    gain: float
    dtype: jnp.dtype
    kernel_axes: tuple[str, str] = ("conv_in", "conv_out")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = Dense(
            self.features,
            use_bias=False,
            kernel_init=kernel_init(self.gain) if self.gain else nn.initializers.zeros,
            dtype=self.dtype,
            kernel_axes=self.kernel_axes,
        )
        return dense(x)


class Block(nn.Module):
    """x + 1×1 ∘ grouped 3×3 ∘ 1×1 (x); the identity when training begins."""

    config: R3GANConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, channels, x = self.config, x.shape[-1], with_logical_constraint(x, "batch")
        inner, spatial = channels * c.expansion, x.ndim - 2
        y = PointConv(inner, c.kernel_gain, self.dtype, name="expand")(x)
        y = self._biased_leaky_relu("bias_0", y)
        # Inputs of a group are too few to be split, so the outputs are split by fsdp, too.
        axes = (*[None] * spatial, None, "stem")
        init = nn.with_logical_partitioning(kernel_init(c.kernel_gain), axes)
        shape = (*[3] * spatial, c.group_width, inner)
        kernel = jnp.asarray(self.param("grouped_kernel", init, shape), self.dtype)
        y = grouped_convolution(y, kernel)
        y = self._biased_leaky_relu("bias_1", y)
        return x + PointConv(channels, 0.0, self.dtype, name="reduce")(y)

    def _biased_leaky_relu(self, name: str, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("bias",))
        bias = jnp.asarray(self.param(name, init, x.shape[-1:]), self.dtype)
        return jax.nn.leaky_relu(x + bias, SLOPE)


class Generator(nn.Module):
    """(B, Z) → examples (B, …, C) in about [−1, 1], without a bound.

    Attributes:
      config: its sizes.
      shape: of an example, (…, C).
      num_classes: K; 0: it is not told the class.
      dtype: of the computation.
    """

    config: R3GANConfig
    shape: tuple[int, ...]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BZ: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        c, (*sides, outputs) = self.config, self.shape
        coarse = coarse_size(sides, len(c.channels) - 1, "model.channels")
        if self.num_classes:
            one_hot_BK = class_one_hot(conditions, z_BZ.shape[0], self.num_classes)
            known = ("classes", "outputs")
            embed = PointConv(c.latent, 1.0, self.dtype, known, name="class_embedding")
            z_BZ = jnp.concatenate([z_BZ, embed(one_hot_BK)], -1)
        axes = (*[None] * len(coarse), "conv_in")
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), axes)
        basis = jnp.asarray(self.param("basis", init, (*coarse, c.channels[0])), self.dtype)
        stem = PointConv(c.channels[0], 1.0, self.dtype, ("latent", "stem"), name="stem")
        weight = stem(z_BZ).reshape(-1, *[1] * len(coarse), c.channels[0])
        x = basis * weight
        for i, channels in enumerate(c.channels):
            if i:
                if channels != x.shape[-1]:
                    x = PointConv(channels, 1.0, self.dtype, name=f"change_{i}")(x)
                x = upsample_linear(x)
            for j in range(c.blocks):
                x = Block(c, self.dtype, name=f"block_{i}_{j}")(x)
        image = PointConv(outputs, 1.0, self.dtype, ("conv_in", "outputs"), name="image")
        return image(crop(x, sides)).astype(jnp.float32)


class Critic(nn.Module):
    """Examples (B, …, C) in [−1, 1] → scores (B,); projects classes (Miyato & Koyama 2018)."""

    config: R3GANConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        c, batch = self.config, x.shape[0]
        halvings = len(c.channels) - 1
        x = fill(x, filled_size(x.shape[1:-1], halvings, "model.channels"))
        channels = c.channels[::-1]
        x = PointConv(channels[0], 1.0, self.dtype, ("inputs", "stem"), name="image")(x)
        for i in range(len(channels)):
            for j in range(c.blocks):
                x = Block(c, self.dtype, name=f"block_{i}_{j}")(x)
            if i < halvings:
                x = downsample_linear(x)
                if channels[i + 1] != x.shape[-1]:
                    x = PointConv(channels[i + 1], 1.0, self.dtype, name=f"change_{i + 1}")(x)
        # One weight per place and channel: a depthwise convolution as large as what is left.
        coarse = x.shape[1:-1]
        init = nn.with_logical_partitioning(
            nn.initializers.normal(1 / math.sqrt(math.prod(coarse))),
            (*[None] * len(coarse), "conv_in"),
        )
        basis = jnp.asarray(self.param("basis", init, (*coarse, channels[-1])), self.dtype)
        x = (x * basis).sum(tuple(range(1, x.ndim - 1)))
        features = channels[-1] if self.num_classes else 1
        score = PointConv(features, 1.0, self.dtype, ("conv_in", "outputs"), name="score")
        x = score(x).astype(jnp.float32)
        if not self.num_classes:
            return x[:, 0]
        one_hot_BK = class_one_hot(conditions, batch, self.num_classes)
        gain, axes = 1 / math.sqrt(features), ("classes", "outputs")
        project = PointConv(features, gain, jnp.float32, axes, name="class_embedding")
        return (x * project(one_hot_BK)).sum(-1)
