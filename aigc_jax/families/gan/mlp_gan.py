"""A fully connected generator and critic, the critic mirroring the generator.

Shapes: B batch, Z latent size, K classes; examples (B, …) of any rank.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.families.gan.dcgan import score
from aigc_jax.nn.conditioner import class_one_hot
from aigc_jax.nn.layers import Dense


@dataclasses.dataclass(frozen=True)
class MLPGANConfig:
    """The section `model` of a fully connected GAN."""

    latent: int = option(100, low=1)
    hidden: tuple[int, ...] = option((256, 512), low=1, nonempty=True)  # the critic's are reversed
    conditional: bool = True  # on the class, if the data has classes


class Generator(nn.Module):
    """(B, Z) → examples (B, …) in [−1, 1].

    Attributes:
      config: its sizes.
      shape: of an example.
      num_classes: K; 0: it is not told the class.
      dtype: of the computation.
    """

    config: MLPGANConfig
    shape: tuple[int, ...]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BZ: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        x = with_logical_constraint(z_BZ, "batch")
        if self.num_classes:
            one_hot_BK = class_one_hot(conditions, z_BZ.shape[0], self.num_classes)
            x = jnp.concatenate([x, one_hot_BK], -1)
        x = hidden_layers(x, self.config.hidden, self.dtype)
        axes = ("dense_in", "outputs")
        image = Dense(math.prod(self.shape), dtype=self.dtype, kernel_axes=axes, name="image")
        return jnp.tanh(image(x).astype(jnp.float32)).reshape(-1, *self.shape)


class Critic(nn.Module):
    """Examples (B, …) in [−1, 1] → scores (B,); projects classes (Miyato & Koyama 2018)."""

    config: MLPGANConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        x = with_logical_constraint(x.reshape(x.shape[0], -1), "batch")
        x = hidden_layers(x, self.config.hidden[::-1], self.dtype)
        return score(x, conditions, self.num_classes, self.dtype)


def hidden_layers(x_BF: jax.Array, sizes: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Dense layers `hidden_0`, … of the calling module, each with a leaky ReLU."""
    for i, size in enumerate(sizes):
        axes = ("dense_in", "dense_out") if i else ("inputs", "stem")
        x_BF = Dense(size, dtype=dtype, kernel_axes=axes, name=f"hidden_{i}")(x_BF)
        x_BF = jax.nn.leaky_relu(x_BF, 0.2)
    return x_BF
