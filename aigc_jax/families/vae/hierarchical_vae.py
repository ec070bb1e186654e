"""A hierarchical VAE's networks: several groups of latents on a shared top-down path.

The ladder of Sønderby et al. (2016) in the form of the very deep VAE (Child 2021): features go up
once, and on the way down every group's prior and posterior start from what is above. A group is
written in units of its own prior, z = μ(above) + σ(above) u, and the posterior is one of u: it is
relative to the prior, as in NVAE (Vahdat & Kautz 2020), and the prior of u is N(0, 1).
Shapes: B batch, H height, W width, C channels, Z latent channels, K classes.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import Conv, Dense, Residual, SubPixelConv, group_norm, label_one_hot
from aigc_jax.nn.padding import crop, fill, filled_size
from aigc_jax.ops.activation import gelu


@dataclasses.dataclass(frozen=True)
class HierarchicalVAEConfig:
    channels: tuple[int, ...] = option((32, 64, 64), low=1, nonempty=True)  # fine to coarse; ÷2
    groups: tuple[int, ...] = option(
        (0, 1, 2), low=0, nonempty=True
    )  # of latents, at each of these
    latent: int = option(8, low=1)  # channels of a group
    blocks: int = option(1, low=0)  # residual blocks at each size on the way up, and after a group
    conditional: bool = False

    # Split along all of these, its gradient is wrong (jaxlib 0.10.2).
    wrong_on = ("data", "fsdp", "tensor")

    def __post_init__(self):
        if len(self.groups) != len(self.channels) or not any(self.groups):
            raise UserError(
                f"model.groups={self.groups} must say how many groups each of the"
                f" {len(self.channels)} sizes of model.channels has, one or more in all"
            )

    def filled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of images as the networks see them; UserError if they are too small."""
        return filled_size(size, len(self.channels) - 1, "model.channels and model.groups")


class BottomUp(nn.Module):
    """Images (B, H, W, C) in [0, 1] → features at each size, fine to coarse."""

    config: HierarchicalVAEConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None = None) -> list[jax.Array]:
        c, x, features = self.config, with_logical_constraint(2 * x_BHWC - 1, "batch"), []
        x = fill(x, c.filled(x.shape[1:3]))
        for i, channels in enumerate(c.channels):
            strides = (2, 2) if i else (1, 1)
            axes = ("conv_in", "conv_out") if i else ("inputs", "stem")
            kw = dict(dtype=self.dtype, kernel_axes=axes, name=f"down_{i}")
            x = Conv(channels, (3, 3), strides, **kw)(x)
            for j in range(c.blocks):
                x = Residual(channels, self.dtype, name=f"block_{i}_{j}")(x)
            features.append(x)
        return features


class TopDown(nn.Module):
    """Noise, or latents, of each group → one map per pixel and colour (B, H, W, C), float32."""

    config: HierarchicalVAEConfig
    shape: tuple[int, int, int]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(h, w, Z) of each group, from the top."""
        c = self.config
        height, width = c.filled(self.shape[:2])
        levels = reversed(range(len(c.channels)))
        return [
            (height >> level, width >> level, c.latent)
            for level in levels
            for _ in range(c.groups[level])
        ]

    @nn.compact
    def __call__(
        self,
        noise: Sequence[jax.Array],
        label_B: jax.Array | None = None,
        features: Sequence[jax.Array] | None = None,
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """The output, and the groups' mean and log variance of q(u | x, above).

        Args:
          noise: with features, standard normal; without, the latents u themselves.
          label_B: classes.
          features: what the bottom-up network has read; none: draw from the prior.
        """
        c, (height, width) = self.config, self.config.filled(self.shape[:2])
        coarsest, left, groups = len(c.channels) - 1, list(noise), []
        size = (height >> coarsest, width >> coarsest, c.channels[-1])
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "conv_in"))
        top = self.param("top", init, size).astype(self.dtype)
        x = jnp.broadcast_to(top, (noise[0].shape[0], *size))
        if self.num_classes:
            one_hot = label_one_hot(label_B, len(x), self.num_classes)
            kw = dict(dtype=self.dtype, kernel_axes=("classes", "conv_in"), name="label")
            x += Dense(size[-1], **kw)(one_hot)[:, None, None]
        for level in reversed(range(len(c.channels))):
            if level < coarsest:
                x = SubPixelConv(c.channels[level], dtype=self.dtype, name=f"up_{level}")(x)
            for i in range(c.groups[level]):
                read = features[level] if features is not None else None
                x, group = self._group(x, left.pop(0), read, f"group_{level}_{i}")
                groups += [group] if group else []
            for i in range(0 if c.groups[level] else c.blocks):
                x = Residual(c.channels[level], self.dtype, name=f"block_{level}_{i}")(x)
        x = gelu(group_norm(x.shape[-1], self.dtype, name="norm_out")(x))
        kw = dict(dtype=self.dtype, kernel_axes=("conv_in", "outputs"), name="image")
        x = Conv(self.shape[2], (3, 3), **kw)(x)
        return crop(x, self.shape[:2]).astype(jnp.float32), groups

    def _group(self, x, noise, read, name):
        """The path with one more group of latents on it, and the group's posterior."""
        c, width = self.config, x.shape[-1]
        u, group = noise, None
        if read is not None:
            both = jnp.concatenate([x, read], -1)
            out = Head(width, 2 * c.latent, self.dtype, name=f"{name}_posterior")(both)
            mean, log_var = jnp.split(out, 2, -1)
            # e^±12 is far outside what training visits; it keeps a wild first step finite.
            group = mean, jnp.clip(log_var, -12.0, 12.0)
            u = mean + jnp.exp(group[1] / 2) * noise
        prior = Head(width, 2 * c.latent + width, self.dtype, name=f"{name}_prior")(x)
        mean, log_scale = jnp.split(prior[..., : 2 * c.latent], 2, -1)
        z = mean + jnp.exp(jnp.clip(log_scale, -6.0, 6.0)) * u
        x += prior[..., 2 * c.latent :].astype(x.dtype)
        kw = dict(dtype=self.dtype, kernel_axes=("latent", "stem"), name=f"{name}_in")
        x += Conv(width, (1, 1), **kw)(z)
        for i in range(c.blocks):
            x = Residual(width, self.dtype, name=f"{name}_block_{i}")(x)
        return x, group


class Head(nn.Module):
    """Features → float32 outputs that begin as zero: posterior and prior start as one."""

    hidden: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = gelu(group_norm(x_BHWC.shape[-1], self.dtype, name="norm")(x_BHWC))
        x = gelu(Conv(self.hidden, (3, 3), dtype=self.dtype, name="conv")(x))
        zeros = nn.initializers.zeros
        kw = dict(dtype=self.dtype, kernel_axes=("conv_in", "outputs"), name="out")
        return Conv(self.features, (1, 1), kernel_init=zeros, **kw)(x).astype(jnp.float32)
