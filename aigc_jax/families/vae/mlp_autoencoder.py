"""A fully connected autoencoder: encoder and decoder around a flat latent.

Shapes: B batch; examples (B, …) of any rank; Z latent size, K classes.
"""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.families.vae.latent_groups import concat_class, posterior
from aigc_jax.nn.layers import Dense
from aigc_jax.ops.activation import gelu


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """The section `model` of a fully connected autoencoder."""

    latent: int = option(20, low=1)
    hidden: tuple[int, ...] = option((400,), low=1)  # of the encoder; the decoder mirrors it
    conditional: bool = False

    def filled(self, size: Sequence[int]) -> tuple[int, ...]:
        """The spatial sizes as the networks read them: the same."""
        return tuple(size)


class MLPEncoder(nn.Module):
    """Examples (B, …) in [0, 1] → mean and log variance of q(z | x), each (B, Z)."""

    config: MLPConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, conditions: Conditions | None = None
    ) -> tuple[jax.Array, jax.Array]:
        x = with_logical_constraint(2 * x - 1, "batch")
        x = concat_class(x.reshape(x.shape[0], -1), conditions, self.num_classes)
        x = hidden_layers(x, self.config.hidden, self.dtype)
        return posterior(latent_head(self.config.latent, self.dtype)(x))


class MLPDecoder(nn.Module):
    """(B, Z) → one output per value of an example, (B, *shape) float32."""

    config: MLPConfig
    shape: tuple[int, ...]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BZ: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        x = concat_class(with_logical_constraint(z_BZ, "batch"), conditions, self.num_classes)
        x = hidden_layers(x, self.config.hidden[::-1], self.dtype)
        axes = ("dense_in", "outputs")
        image = Dense(math.prod(self.shape), dtype=self.dtype, kernel_axes=axes, name="image")
        return image(x).astype(jnp.float32).reshape(-1, *self.shape)


def hidden_layers(x_BF: jax.Array, sizes: Sequence[int], dtype: jnp.dtype) -> jax.Array:
    """Dense layers `hidden_0`, … of the calling module, each with a GELU."""
    for i, size in enumerate(sizes):
        axes = ("dense_in", "dense_out") if i else ("inputs", "stem")
        x_BF = gelu(Dense(size, dtype=dtype, kernel_axes=axes, name=f"hidden_{i}")(x_BF))
    return x_BF


def latent_head(latent: int, dtype: jnp.dtype) -> Dense:
    """The layer `latent` of the calling module: mean and log variance of a flat latent."""
    return Dense(2 * latent, dtype=dtype, kernel_axes=("dense_in", "latent"), name="latent")
