"""Encoders and decoders of a VAE: fully connected or convolutional.

Shapes: B batch, H height, W width, C channels, Z latent size, K classes.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import option
from aigc_jax.models.layers import SubPixelConv, check_size, label_one_hot


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    latent: int = option(20, low=1)
    hidden: tuple[int, ...] = option((400,), low=1)  # of the encoder; the decoder mirrors it
    conditional: bool = False


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    latent: int = option(32, low=1)
    channels: tuple[int, ...] = option(
        (32, 64), low=1, filled=True
    )  # fine to coarse; the decoder mirrors it
    hidden: int = option(256, low=1)
    conditional: bool = False


class Encoder(nn.Module):
    """Images in [0, 1] → mean and log variance of q(z | x), each (B, Z)."""

    config: MLPConfig | ConvConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None = None):
        c, x = self.config, 2 * x_BHWC - 1
        if isinstance(c, ConvConfig):
            check_size(x.shape[1:3], len(c.channels), "model.channels")
            for i, channels in enumerate(c.channels):
                stride = 2 if i else 1
                x = nn.Conv(channels, (3, 3), (stride, stride), dtype=self.dtype, name=f"down_{i}")(
                    x
                )
                x = jax.nn.gelu(x)
        x = x.reshape(x.shape[0], -1)
        if self.num_classes:
            x = jnp.concatenate([x, label_one_hot(label_B, x.shape[0], self.num_classes)], -1)
        for i, size in enumerate(hidden_sizes(c)):
            x = jax.nn.gelu(nn.Dense(size, dtype=self.dtype, name=f"hidden_{i}")(x))
        out = nn.Dense(2 * c.latent, dtype=self.dtype, name="latent")(x).astype(jnp.float32)
        mean_BZ, log_var_BZ = jnp.split(out, 2, -1)
        # e^±12 is far outside what training visits; it keeps a wild first step finite.
        return mean_BZ, jnp.clip(log_var_BZ, -12.0, 12.0)


class Decoder(nn.Module):
    """(B, Z) → `outputs` maps per pixel and colour, (B, H, W, C, outputs), float32."""

    config: MLPConfig | ConvConfig
    shape: tuple[int, int, int]
    outputs: int
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BZ: jax.Array, label_B: jax.Array | None = None) -> jax.Array:
        c, (height, width, colours) = self.config, self.shape
        x = z_BZ
        if self.num_classes:
            x = jnp.concatenate([x, label_one_hot(label_B, x.shape[0], self.num_classes)], -1)
        for i, size in enumerate(reversed(hidden_sizes(c))):
            x = jax.nn.gelu(nn.Dense(size, dtype=self.dtype, name=f"hidden_{i}")(x))
        if isinstance(c, ConvConfig):
            factor = 2 ** (len(c.channels) - 1)
            h, w = height // factor, width // factor
            x = nn.Dense(h * w * c.channels[-1], dtype=self.dtype, name="spread")(x)
            x = jax.nn.gelu(x).reshape(-1, h, w, c.channels[-1])
            for i, channels in enumerate(reversed(c.channels[:-1])):
                x = jax.nn.gelu(SubPixelConv(channels, dtype=self.dtype, name=f"up_{i}")(x))
            x = nn.Conv(colours * self.outputs, (3, 3), dtype=self.dtype, name="image")(x)
        else:
            size = height * width * colours * self.outputs
            x = nn.Dense(size, dtype=self.dtype, name="image")(x)
        return x.astype(jnp.float32).reshape(-1, height, width, colours, self.outputs)


def hidden_sizes(config: MLPConfig | ConvConfig) -> tuple[int, ...]:
    return (config.hidden,) if isinstance(config, ConvConfig) else config.hidden
