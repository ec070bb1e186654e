"""A convolutional autoencoder: encoder and decoder around a flat or a spatial latent.

Shapes: B batch, … one or more spatial axes, such as H, W; …' those of the latents; C channels, Z
latent size or channels, K classes.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.families.vae.latent_groups import HalvedLevels, concat_class, posterior
from aigc_jax.families.vae.mlp_autoencoder import hidden_layers, latent_head
from aigc_jax.nn.conv_blocks import per_axis
from aigc_jax.nn.layers import Conv, Dense, Residual, SubPixelConv
from aigc_jax.nn.padding import crop, fill
from aigc_jax.ops.activation import gelu


@dataclasses.dataclass(frozen=True)
class ConvConfig(HalvedLevels):
    """The section `model` of a convolutional autoencoder."""

    latent: int = option(32, low=1)
    # Fine to coarse; the decoder mirrors it.
    channels: tuple[int, ...] = option((32, 64), low=1, nonempty=True)
    hidden: int = option(256, low=1)  # of the layer beside flat latents
    spatial: bool = False  # latents (…', Z) of the coarsest size instead of flat ones (Z)
    blocks: int = option(0, low=0)  # residual blocks at each size
    conditional: bool = False


class ConvEncoder(nn.Module):
    """Examples (B, …, C) in [0, 1] → mean and log variance of q(z | x), (B, Z) or (B, …', Z)."""

    config: ConvConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, conditions: Conditions | None = None
    ) -> tuple[jax.Array, jax.Array]:
        c, x = self.config, with_logical_constraint(2 * x - 1, "batch")
        x = fill(x, c.filled(x.shape[1:-1]))
        for i, channels in enumerate(c.channels):
            axes = ("conv_in", "conv_out") if i else ("inputs", "stem")
            x = gelu(
                Conv(
                    channels,
                    per_axis(x, 3),
                    per_axis(x, 2 if i else 1),
                    dtype=self.dtype,
                    kernel_axes=axes,
                    name=f"down_{i}",
                )(x)
            )
            for j in range(c.blocks):
                x = Residual(channels, self.dtype, name=f"block_{i}_{j}")(x)
        if c.spatial:
            x = concat_class(x, conditions, self.num_classes)
            return posterior(
                Conv(
                    2 * c.latent,
                    per_axis(x, 3),
                    dtype=self.dtype,
                    kernel_axes=("conv_in", "latent"),
                    name="latent",
                )(x)
            )
        x = concat_class(x.reshape(x.shape[0], -1), conditions, self.num_classes)
        x = hidden_layers(x, (c.hidden,), self.dtype)
        return posterior(latent_head(c.latent, self.dtype)(x))


class ConvDecoder(nn.Module):
    """(B, Z) or (B, …', Z) → one output per value of an example, (B, *shape) float32."""

    config: ConvConfig
    shape: tuple[int, ...]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        c, (*sides, outputs) = self.config, self.shape
        x = concat_class(with_logical_constraint(z, "batch"), conditions, self.num_classes)
        if c.spatial:
            x = Conv(
                c.channels[-1],
                per_axis(x, 3),
                dtype=self.dtype,
                kernel_axes=("latent", "stem"),
                name="spread",
            )(x)
        else:
            x = hidden_layers(x, (c.hidden,), self.dtype)
            coarse = c.coarse(sides)
            size = math.prod(coarse) * c.channels[-1]
            x = Dense(size, dtype=self.dtype, name="spread")(x)
            x = x.reshape(-1, *coarse, c.channels[-1])
        x = self._blocks(gelu(x), "block_in")
        for i, channels in enumerate(c.channels[-2::-1]):
            x = gelu(SubPixelConv(channels, dtype=self.dtype, name=f"up_{i}")(x))
            x = self._blocks(x, f"block_{i}")
        x = Conv(
            outputs,
            per_axis(x, 3),
            dtype=self.dtype,
            kernel_axes=("conv_in", "outputs"),
            name="image",
        )(x)
        return crop(x, sides).astype(jnp.float32)

    def _blocks(self, x: jax.Array, name: str) -> jax.Array:
        for j in range(self.config.blocks):
            x = Residual(x.shape[-1], self.dtype, name=f"{name}_{j}")(x)
        return x
