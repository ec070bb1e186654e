"""A DCGAN-style generator and critic (Radford et al. 2016), conditional on a class if asked.

Shapes: B batch, H height, W width, C channels, Z latent size, K classes.
Without batch norm: an image's score then never depends on its neighbours in the batch.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import option
from aigc_jax.models.layers import SubPixelConv, check_size, group_norm, label_one_hot


@dataclasses.dataclass(frozen=True)
class DCGANConfig:
    latent: int = option(64, low=1)
    generator_channels: tuple[int, ...] = option(
        (64, 32), low=1, filled=True
    )  # coarse to fine; ×2 between
    critic_channels: tuple[int, ...] = option(
        (32, 64), low=1, filled=True
    )  # fine to coarse; ÷2 between
    kernel: int = option(3, low=1)
    norm: bool = True  # group norm in the generator
    conditional: bool = True  # on the class, if the data has classes


class Generator(nn.Module):
    """(B, Z) → images (B, H, W, C) in [−1, 1]."""

    config: DCGANConfig
    shape: tuple[int, int, int]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BZ: jax.Array, label_B: jax.Array | None = None) -> jax.Array:
        c, (height, width, colours) = self.config, self.shape
        check_size((height, width), len(c.generator_channels), "model.generator_channels")
        if self.num_classes:
            one_hot = label_one_hot(label_B, z_BZ.shape[0], self.num_classes)
            z_BZ = jnp.concatenate([z_BZ, one_hot], -1)
        first, factor = c.generator_channels[0], 2 ** (len(c.generator_channels) - 1)
        h, w = height // factor, width // factor
        x = nn.Dense(h * w * first, dtype=self.dtype, name="stem")(z_BZ)
        x = x.reshape(-1, h, w, first)
        for i, channels in enumerate(c.generator_channels):
            if i:
                x = SubPixelConv(channels, c.kernel, self.dtype, name=f"up_{i}")(x)
            x = group_norm(channels, self.dtype, name=f"norm_{i}")(x) if c.norm else x
            x = jax.nn.leaky_relu(x, 0.2)
            x = nn.Conv(channels, (c.kernel, c.kernel), dtype=self.dtype, name=f"conv_{i}")(x)
            x = jax.nn.leaky_relu(x, 0.2)
        x = nn.Conv(colours, (c.kernel, c.kernel), dtype=self.dtype, name="image")(x)
        return jnp.tanh(x.astype(jnp.float32))


class Critic(nn.Module):
    """Images (B, H, W, C) in [−1, 1] → scores (B,); projects classes (Miyato & Koyama 2018)."""

    config: DCGANConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None = None) -> jax.Array:
        c = self.config
        check_size(x_BHWC.shape[1:3], len(c.critic_channels), "model.critic_channels")
        x = x_BHWC
        for i, channels in enumerate(c.critic_channels):
            stride = 2 if i else 1
            x = nn.Conv(
                channels, (c.kernel, c.kernel), (stride, stride), dtype=self.dtype, name=f"down_{i}"
            )(x)
            x = jax.nn.leaky_relu(x, 0.2)
            x = nn.Conv(channels, (c.kernel, c.kernel), dtype=self.dtype, name=f"conv_{i}")(x)
            x = jax.nn.leaky_relu(x, 0.2)
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.leaky_relu(
            nn.Dense(2 * c.critic_channels[-1], dtype=self.dtype, name="features")(x), 0.2
        )
        score_B = nn.Dense(1, dtype=self.dtype, name="score")(x)[:, 0]
        if self.num_classes:
            one_hot = label_one_hot(label_B, x.shape[0], self.num_classes)
            direction = nn.Dense(
                x.shape[-1], use_bias=False, dtype=self.dtype, name="class_embedding"
            )(one_hot)
            score_B += (x * direction).sum(-1) / jnp.sqrt(x.shape[-1])
        return score_B.astype(jnp.float32)
