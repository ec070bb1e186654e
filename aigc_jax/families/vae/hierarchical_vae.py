"""Networks of a hierarchical VAE: several groups of latents on a shared top-down path.

The ladder of Sønderby et al. (2016) in the form of the very deep VAE (Child 2021): features go up
once, and on the way down the prior and posterior of every group depend on those above. A group is
written in units of its own prior, z = μ(above) + σ(above) u, and the posterior is one of u: it is
relative to the prior, as in NVAE (Vahdat & Kautz 2020), and the prior of u is N(0, 1).
Shapes: B batch, … one or more spatial axes, such as H, W; C channels, Z latent channels, K classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.families.vae.latent_groups import Group, HalvedLevels, posterior
from aigc_jax.nn.conditioner import class_one_hot
from aigc_jax.nn.conv_blocks import per_axis
from aigc_jax.nn.layers import Conv, Dense, Residual, SubPixelConv, make_group_norm
from aigc_jax.nn.padding import crop, fill
from aigc_jax.ops.activation import gelu


@dataclasses.dataclass(frozen=True)
class HierarchicalVAEConfig(HalvedLevels):
    """The section `model` of a hierarchical VAE."""

    FIELDS: ClassVar[str] = "model.channels and model.groups"

    # Fine to coarse; the spatial axes are halved between two.
    channels: tuple[int, ...] = option((32, 64, 64), low=1, nonempty=True)
    groups: tuple[int, ...] = option((0, 1, 2), low=0, nonempty=True)  # of latents, at each of them
    latent: int = option(8, low=1)  # channels of a group
    # Residual blocks: at each size on the way up, and after each group on the way down.
    blocks: int = option(1, low=0)
    conditional: bool = False

    # Split along all of these, its gradient is wrong (jaxlib 0.10.2).
    wrong_on = ("data", "fsdp", "tensor")

    def __post_init__(self):
        if len(self.groups) != len(self.channels) or not any(self.groups):
            raise UserError(
                f"model.groups={self.groups} must say how many groups each of the"
                f" {len(self.channels)} sizes of model.channels has, one or more in all"
            )


class BottomUp(nn.Module):
    """Examples (B, …, C) in [0, 1] → features at each size, fine to coarse."""

    config: HierarchicalVAEConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, conditions: Conditions | None = None) -> list[jax.Array]:
        c, x, features = self.config, with_logical_constraint(2 * x - 1, "batch"), []
        x = fill(x, c.filled(x.shape[1:-1]))
        for i, channels in enumerate(c.channels):
            axes = ("conv_in", "conv_out") if i else ("inputs", "stem")
            x = Conv(
                channels,
                per_axis(x, 3),
                per_axis(x, 2 if i else 1),
                dtype=self.dtype,
                kernel_axes=axes,
                name=f"down_{i}",
            )(x)
            for j in range(c.blocks):
                x = Residual(channels, self.dtype, name=f"block_{i}_{j}")(x)
            features.append(x)
        return features


class TopDown(nn.Module):
    """Noise, or latents, of each group → one output per value of an example, (B, *shape) float32.

    Attributes:
      config: its sizes.
      shape: of an example, (…, C).
      num_classes: K; 0: it is not told the class.
      dtype: of the computation.
    """

    config: HierarchicalVAEConfig
    shape: tuple[int, ...]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    def latent_shapes(self) -> list[tuple[int, ...]]:
        """The shape (…, Z) of each group, from the top."""
        c = self.config
        return [
            (*self._sides(level), c.latent)
            for level in reversed(range(len(c.channels)))
            for _ in range(c.groups[level])
        ]

    def _sides(self, level: int) -> tuple[int, ...]:
        """The spatial sizes at a level, 0 the finest."""
        return tuple(side >> level for side in self.config.filled(self.shape[:-1]))

    @nn.compact
    def __call__(
        self,
        noise: Sequence[jax.Array],
        conditions: Conditions | None = None,
        features: Sequence[jax.Array] | None = None,
    ) -> tuple[jax.Array, list[Group]]:
        """The output, and mean and log variance of q(u | x, above) of each group.

        Args:
          noise: with features, standard normal; without, the latents u themselves.
          conditions: of the examples.
          features: from the bottom-up network; None: the latents are drawn from the prior.
        """
        c, levels = self.config, len(self.config.channels)
        x, left, groups = self._top(noise[0].shape[0], conditions), list(noise), []
        for level in reversed(range(levels)):
            if level < levels - 1:
                x = SubPixelConv(c.channels[level], dtype=self.dtype, name=f"up_{level}")(x)
            for i in range(c.groups[level]):
                encoded = features[level] if features is not None else None
                x, group = self._group(x, left.pop(0), encoded, f"group_{level}_{i}")
                groups += [group] if group else []
            for i in range(0 if c.groups[level] else c.blocks):
                x = Residual(c.channels[level], self.dtype, name=f"block_{level}_{i}")(x)
        x = gelu(make_group_norm(x.shape[-1], self.dtype, name="norm_out")(x))
        x = Conv(
            self.shape[-1],
            per_axis(x, 3),
            dtype=self.dtype,
            kernel_axes=("conv_in", "outputs"),
            name="image",
        )(x)
        return crop(x, self.shape[:-1]).astype(jnp.float32), groups

    def _top(self, batch: int, conditions: Conditions | None) -> jax.Array:
        """Where the path begins: a learned array, to which the class adds a vector."""
        channels = self.config.channels[-1]
        size = (*self._sides(len(self.config.channels) - 1), channels)
        axes = (*[None] * (len(size) - 1), "conv_in")
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
        top = jnp.asarray(self.param("top", init, size), self.dtype)
        x = jnp.broadcast_to(top, (batch, *size))
        if self.num_classes:
            one_hot_BK = class_one_hot(conditions, batch, self.num_classes)
            vector_BC = Dense(
                channels, dtype=self.dtype, kernel_axes=("classes", "conv_in"), name="label"
            )(one_hot_BK)
            x += vector_BC.reshape(batch, *[1] * (len(size) - 1), channels)
        return x

    def _group(
        self, x: jax.Array, noise: jax.Array, encoded: jax.Array | None, name: str
    ) -> tuple[jax.Array, Group | None]:
        """The path with one more group of latents on it, and the group's posterior."""
        c, width = self.config, x.shape[-1]
        u, group = noise, None
        if encoded is not None:
            both = jnp.concatenate([x, encoded], -1)
            out = Head(width, 2 * c.latent, self.dtype, name=f"{name}_posterior")(both)
            group = mean, log_var = posterior(out)
            u = mean + jnp.exp(log_var / 2) * noise
        prior = Head(width, 2 * c.latent + width, self.dtype, name=f"{name}_prior")(x)
        mean, log_scale = jnp.split(prior[..., : 2 * c.latent], 2, -1)
        z = mean + jnp.exp(jnp.clip(log_scale, -6.0, 6.0)) * u
        x += prior[..., 2 * c.latent :].astype(x.dtype)
        x += Conv(
            width,
            per_axis(z, 1),
            dtype=self.dtype,
            kernel_axes=("latent", "stem"),
            name=f"{name}_in",
        )(z)
        for i in range(c.blocks):
            x = Residual(width, self.dtype, name=f"{name}_block_{i}")(x)
        return x, group


class Head(nn.Module):
    """Features → float32 outputs that begin as zero: posterior and prior start equal."""

    hidden: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = gelu(make_group_norm(x.shape[-1], self.dtype, name="norm")(x))
        x = gelu(Conv(self.hidden, per_axis(x, 3), dtype=self.dtype, name="conv")(x))
        zeros = nn.initializers.zeros
        return Conv(
            self.features,
            per_axis(x, 1),
            kernel_init=zeros,
            dtype=self.dtype,
            kernel_axes=("conv_in", "outputs"),
            name="out",
        )(x).astype(jnp.float32)
