"""A fully connected generator and critic, the critic mirroring the generator.

Shapes: B batch, H height, W width, C channels, Z latent size.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.families.gan.dcgan import score
from aigc_jax.nn.layers import Dense, label_one_hot


@dataclasses.dataclass(frozen=True)
class MLPGANConfig:
    latent: int = option(100, low=1)
    hidden: tuple[int, ...] = option((256, 512), low=1, nonempty=True)  # the critic's are reversed
    conditional: bool = True  # on the class, if the data has classes


class Generator(nn.Module):
    """(B, Z) → images (B, H, W, C) in [−1, 1]."""

    config: MLPGANConfig
    shape: tuple[int, int, int]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BZ: jax.Array, label_B: jax.Array | None = None) -> jax.Array:
        height, width, colours = self.shape
        x = with_logical_constraint(z_BZ, "batch")
        if self.num_classes:
            one_hot = label_one_hot(label_B, z_BZ.shape[0], self.num_classes)
            x = jnp.concatenate([x, one_hot], -1)
        for i, size in enumerate(self.config.hidden):
            axes = ("dense_in", "dense_out") if i else ("inputs", "stem")
            x = Dense(size, dtype=self.dtype, kernel_axes=axes, name=f"hidden_{i}")(x)
            x = jax.nn.leaky_relu(x, 0.2)
        image = Dense(
            height * width * colours,
            dtype=self.dtype,
            kernel_axes=("dense_in", "outputs"),
            name="image",
        )
        x = image(x)
        return jnp.tanh(x.astype(jnp.float32)).reshape(-1, height, width, colours)


class Critic(nn.Module):
    """Images (B, H, W, C) in [−1, 1] → scores (B,); projects classes (Miyato & Koyama 2018)."""

    config: MLPGANConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None = None) -> jax.Array:
        x = with_logical_constraint(x_BHWC.reshape(x_BHWC.shape[0], -1), "batch")
        for i, size in enumerate(reversed(self.config.hidden)):
            axes = ("dense_in", "dense_out") if i else ("inputs", "stem")
            x = Dense(size, dtype=self.dtype, kernel_axes=axes, name=f"hidden_{i}")(x)
            x = jax.nn.leaky_relu(x, 0.2)
        return score(x, label_B, self.num_classes, self.dtype)
