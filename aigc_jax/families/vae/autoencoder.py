"""Encoders and decoders of an autoencoder: fully connected or convolutional.

Shapes: B batch, H height, W width, C channels, Z latent size, K classes; h, w of spatial latents.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import Conv, Dense, Residual, SubPixelConv, label_one_hot
from aigc_jax.nn.padding import crop, fill, filled_size
from aigc_jax.ops.activation import gelu


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    latent: int = option(20, low=1)
    hidden: tuple[int, ...] = option((400,), low=1)  # of the encoder; the decoder mirrors it
    conditional: bool = False

    def filled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of images as the networks see them."""
        return size


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    latent: int = option(32, low=1)
    channels: tuple[int, ...] = option(
        (32, 64), low=1, nonempty=True
    )  # fine to coarse; the decoder mirrors it
    hidden: int = option(256, low=1)  # of the layer beside flat latents
    spatial: bool = False  # latents (h, w, Z) of the coarsest size instead of flat ones (Z)
    blocks: int = option(0, low=0)  # residual blocks at each size
    conditional: bool = False

    def filled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of images as the networks see them; UserError if they are too small."""
        return filled_size(size, len(self.channels) - 1, "model.channels")


class Encoder(nn.Module):
    """Images in [0, 1] → mean and log variance of q(z | x), each (B, Z), or (B, h, w, Z)."""

    config: MLPConfig | ConvConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None = None):
        c, x = self.config, with_logical_constraint(2 * x_BHWC - 1, "batch")
        if isinstance(c, ConvConfig):
            x = fill(x, c.filled(x.shape[1:3]))
            for i, channels in enumerate(c.channels):
                strides = (2, 2) if i else (1, 1)
                axes = ("conv_in", "conv_out") if i else ("inputs", "stem")
                kw = dict(dtype=self.dtype, kernel_axes=axes, name=f"down_{i}")
                x = gelu(Conv(channels, (3, 3), strides, **kw)(x))
                for j in range(c.blocks):
                    x = Residual(channels, self.dtype, name=f"block_{i}_{j}")(x)
        if is_spatial(c):
            x = with_label(x, label_B, self.num_classes)
            kw = dict(dtype=self.dtype, kernel_axes=("conv_in", "latent"), name="latent")
            head = Conv(2 * c.latent, (3, 3), **kw)
        else:
            x = with_label(x.reshape(x.shape[0], -1), label_B, self.num_classes)
            for i, size in enumerate(hidden_sizes(c)):
                axes = ("dense_in", "dense_out") if i else ("inputs", "stem")
                x = gelu(Dense(size, dtype=self.dtype, kernel_axes=axes, name=f"hidden_{i}")(x))
            kw = dict(dtype=self.dtype, kernel_axes=("dense_in", "latent"), name="latent")
            head = Dense(2 * c.latent, **kw)
        mean, log_var = jnp.split(head(x).astype(jnp.float32), 2, -1)
        # e^±12 is far outside what training visits; it keeps a wild first step finite.
        return mean, jnp.clip(log_var, -12.0, 12.0)


class Decoder(nn.Module):
    """(B, Z), or (B, h, w, Z) → `outputs` maps per pixel and colour, (B, H, W, C, outputs)."""

    config: MLPConfig | ConvConfig
    shape: tuple[int, int, int]
    outputs: int
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, label_B: jax.Array | None = None) -> jax.Array:
        c, (height, width, colours) = self.config, self.shape
        x = with_label(with_logical_constraint(z, "batch"), label_B, self.num_classes)
        if is_spatial(c):
            kw = dict(dtype=self.dtype, kernel_axes=("latent", "stem"), name="spread")
            x = Conv(c.channels[-1], (3, 3), **kw)(x)
        else:
            for i, size in enumerate(reversed(hidden_sizes(c))):
                axes = ("dense_in", "dense_out") if i else ("inputs", "stem")
                x = gelu(Dense(size, dtype=self.dtype, kernel_axes=axes, name=f"hidden_{i}")(x))
        if isinstance(c, ConvConfig):
            if not c.spatial:
                factor = 2 ** (len(c.channels) - 1)
                h, w = (side // factor for side in c.filled((height, width)))
                x = Dense(h * w * c.channels[-1], dtype=self.dtype, name="spread")(x)
                x = x.reshape(-1, h, w, c.channels[-1])
            x = self._blocks(gelu(x), "block_in")
            for i, channels in enumerate(reversed(c.channels[:-1])):
                x = gelu(SubPixelConv(channels, dtype=self.dtype, name=f"up_{i}")(x))
                x = self._blocks(x, f"block_{i}")
            kw = dict(dtype=self.dtype, kernel_axes=("conv_in", "outputs"), name="image")
            x = Conv(colours * self.outputs, (3, 3), **kw)(x)
            x = crop(x, (height, width))
        else:
            size = height * width * colours * self.outputs
            kw = dict(dtype=self.dtype, kernel_axes=("dense_in", "outputs"), name="image")
            x = Dense(size, **kw)(x)
        return x.astype(jnp.float32).reshape(-1, height, width, colours, self.outputs)

    def _blocks(self, x: jax.Array, name: str) -> jax.Array:
        for j in range(self.config.blocks):
            x = Residual(x.shape[-1], self.dtype, name=f"{name}_{j}")(x)
        return x


def hidden_sizes(config: MLPConfig | ConvConfig) -> tuple[int, ...]:
    return (config.hidden,) if isinstance(config, ConvConfig) else config.hidden


def is_spatial(config: MLPConfig | ConvConfig) -> bool:
    return isinstance(config, ConvConfig) and config.spatial


def with_label(x: jax.Array, label_B: jax.Array | None, num_classes: int) -> jax.Array:
    """(B, …, C) → (B, …, C + K): the class at every place, if there are classes."""
    if not num_classes:
        return x
    one_hot_BK = label_one_hot(label_B, x.shape[0], num_classes)
    one_hot = one_hot_BK.reshape(len(x), *[1] * (x.ndim - 2), num_classes)
    return jnp.concatenate([x, jnp.broadcast_to(one_hot, (*x.shape[:-1], num_classes))], -1)
