"""DCGAN (Radford et al. 2016), conditional if asked: as published, or with more convolutions.

Shapes: B batch, … one or more spatial axes, such as H, W; C channels, Z latent size, K classes.
Without batch norm: the score of an example never depends on its neighbours in the batch.
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
from aigc_jax.nn.conv_blocks import per_axis
from aigc_jax.nn.layers import Conv, Dense, SubPixelConv, make_group_norm
from aigc_jax.nn.padding import coarse_size, crop


@dataclasses.dataclass(frozen=True)
class DCGANConfig:
    """The section `model` of a DCGAN."""

    latent: int = option(64, low=1)
    generator_channels: tuple[int, ...] = option(
        (64, 32), low=1, nonempty=True
    )  # coarse to fine; ×2 between
    critic_channels: tuple[int, ...] = option(
        (32, 64), low=1, nonempty=True
    )  # fine to coarse; ÷2 between
    kernel: int = option(3, low=1)
    norm: bool = True  # group norm in the generator
    conditional: bool = True  # on the class, if the data has classes
    plain: bool = False  # as published: one strided convolution per entry and no further ones
    strides: tuple[int, ...] = option((), low=1, high=2)  # of the plain generator's; (): all 2

    # Split along all of these, the critic's gradient at its images is wrong (jaxlib 0.10.2, 0.12).
    wrong_on = ("data", "fsdp", "tensor")

    def __post_init__(self):
        if self.strides and len(self.strides) != len(self.generator_channels):
            raise UserError(
                f"model.strides has {len(self.strides)} entries and model.generator_channels"
                f" {len(self.generator_channels)}: give a stride for each"
            )
        if self.strides and not self.plain:
            raise UserError("model.strides is for the published form only: set model.plain=True")

    @property
    def generator_strides(self) -> tuple[int, ...]:
        """Of the transposed convolution after each entry of `generator_channels`, if plain."""
        return self.strides or (2,) * len(self.generator_channels)


class Generator(nn.Module):
    """(B, Z) → examples (B, …, C) in [−1, 1].

    Attributes:
      config: its sizes.
      shape: of an example, (…, C).
      num_classes: K; 0: it is not told the class.
      dtype: of the computation.
    """

    config: DCGANConfig
    shape: tuple[int, ...]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BZ: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        c, (*sides, channels) = self.config, self.shape
        doublings = c.generator_strides.count(2) if c.plain else len(c.generator_channels) - 1
        coarse = coarse_size(sides, doublings, "model.generator_channels")
        if self.num_classes:
            one_hot_BK = class_one_hot(conditions, z_BZ.shape[0], self.num_classes)
            z_BZ = jnp.concatenate([z_BZ, one_hot_BK], -1)
        first = c.generator_channels[0]
        size = math.prod(coarse) * first
        stem = Dense(size, dtype=self.dtype, kernel_axes=("latent", "stem"), name="stem")
        x = with_logical_constraint(stem(z_BZ).reshape(-1, *coarse, first), "batch")
        x = self._plain(x, channels) if c.plain else self._deep(x, channels)
        return jnp.tanh(crop(x, sides).astype(jnp.float32))

    def _deep(self, x: jax.Array, outputs: int) -> jax.Array:
        """A convolution after each doubling, and a last one to the output's channels."""
        c = self.config
        for i, channels in enumerate(c.generator_channels):
            if i:
                x = SubPixelConv(channels, c.kernel, self.dtype, name=f"up_{i}")(x)
            x = make_group_norm(channels, self.dtype, name=f"norm_{i}")(x) if c.norm else x
            x = jax.nn.leaky_relu(x, 0.2)
            x = Conv(channels, per_axis(x, c.kernel), dtype=self.dtype, name=f"conv_{i}")(x)
            x = jax.nn.leaky_relu(x, 0.2)
        image = Conv(
            outputs,
            per_axis(x, c.kernel),
            dtype=self.dtype,
            kernel_axes=("conv_in", "outputs"),
            name="image",
        )
        return image(x)

    def _plain(self, x: jax.Array, outputs: int) -> jax.Array:
        """A transposed convolution after each entry, the last one to the output's channels.

        One of stride 2 has, in its sub-pixel form, a kernel of half the size for each of the places
        that a pixel becomes: 3 × 3 holds all taps of a 5 × 5.
        """
        c = self.config
        widths = (*c.generator_channels[1:], outputs)
        for i, (channels, stride) in enumerate(zip(widths, c.generator_strides, strict=True)):
            x = make_group_norm(x.shape[-1], self.dtype, name=f"norm_{i}")(x) if c.norm else x
            x, last = jax.nn.leaky_relu(x, 0.2), i == len(widths) - 1
            axes = ("conv_in", "outputs" if last else "conv_out")
            if stride == 1:
                x = Conv(
                    channels,
                    per_axis(x, c.kernel),
                    dtype=self.dtype,
                    kernel_axes=axes,
                    name="image" if last else f"up_{i + 1}",
                )(x)
            else:
                half = -(-c.kernel // 2)
                x = SubPixelConv(
                    channels,
                    half + 1 - half % 2,
                    dtype=self.dtype,
                    kernel_axes=axes,
                    name="image" if last else f"up_{i + 1}",
                )(x)
        return x


class Critic(nn.Module):
    """Examples (B, …, C) in [−1, 1] → scores (B,); projects classes (Miyato & Koyama 2018)."""

    config: DCGANConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        c, x = self.config, with_logical_constraint(x, "batch")
        halved = len(c.critic_channels) - (0 if c.plain else 1)
        coarse_size(x.shape[1:-1], halved, "model.critic_channels")
        for i, channels in enumerate(c.critic_channels):
            stride = 2 if i or c.plain else 1
            down = Conv(
                channels,
                per_axis(x, c.kernel),
                per_axis(x, stride),
                dtype=self.dtype,
                kernel_axes=("conv_in", "conv_out") if i else ("inputs", "stem"),
                name=f"down_{i}",
            )
            x = down(x)
            x = jax.nn.leaky_relu(x, 0.2)
            if not c.plain:
                x = Conv(channels, per_axis(x, c.kernel), dtype=self.dtype, name=f"conv_{i}")(x)
                x = jax.nn.leaky_relu(x, 0.2)
        x = x.reshape(x.shape[0], -1)
        if not c.plain:
            x = jax.nn.leaky_relu(
                Dense(2 * c.critic_channels[-1], dtype=self.dtype, name="features")(x), 0.2
            )
        return score(x, conditions, self.num_classes, self.dtype)


def score(
    feature_BF: jax.Array, conditions: Conditions | None, num_classes: int, dtype: jnp.dtype
) -> jax.Array:
    """Scores (B,) of features, with a projection of the class if there are classes.

    Called within a module: `score` and `class_embedding` are its parameters.
    """
    head = Dense(1, dtype=dtype, kernel_axes=("dense_in", "outputs"), name="score")
    score_B = head(feature_BF)[:, 0]
    if num_classes:
        one_hot_BK = class_one_hot(conditions, feature_BF.shape[0], num_classes)
        direction = Dense(
            feature_BF.shape[-1],
            use_bias=False,
            dtype=dtype,
            kernel_axes=("classes", "dense_in"),
            name="class_embedding",
        )(one_hot_BK)
        score_B += (feature_BF * direction).sum(-1) / jnp.sqrt(feature_BF.shape[-1])
    return score_B.astype(jnp.float32)
