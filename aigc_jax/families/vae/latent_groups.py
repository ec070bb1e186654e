"""The latents of a VAE: one group, or a hierarchy of groups, each with a standard normal prior.

An autoencoder has one group, of any shape. A hierarchy has several, and each is drawn given those
above it; in units of its own prior it is standard normal as well, so one bound fits all.
Shapes: B batch; examples (B, …) of any rank; N samples.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions
from aigc_jax.nn.conditioner import class_one_hot
from aigc_jax.nn.padding import coarse_size, filled_size
from aigc_jax.ops.random import fold, normal

# Mean and log variance of q(u | x) of a group, whose prior is N(0, 1); each (B, …).
Group = tuple[jax.Array, jax.Array]


class LatentGroups(Protocol):
    """An encoder and a decoder, with any number of groups of latents u between them."""

    def init(self, rng: jax.Array, x: jax.Array, conditions: Conditions) -> dict[str, Any]:
        """The parameters, `encoder` and `decoder`."""
        ...

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each group of latents, without B."""
        ...

    def encode(self, params: Any, x: jax.Array, conditions: Conditions) -> Any:
        """What the encoder makes of examples, to be drawn from any number of times."""
        ...

    def reparameterize(
        self, params: Any, encoded: Any, noise: Sequence[jax.Array], conditions: Conditions
    ) -> tuple[jax.Array, list[Group]]:
        """The decoder's output (B, …) of latents from the posterior, and the posteriors.

        Args:
          params: from `init`.
          encoded: from `encode`.
          noise: standard normal, of each group.
          conditions: of the examples.
        """
        ...

    def generate(self, params: Any, u: Sequence[jax.Array], conditions: Conditions) -> jax.Array:
        """The decoder's output (N, …) for latents from the prior, in its units."""
        ...


class SingleLatent:
    """One encoder, one decoder, and one group of latents between them, flat or spatial.

    Args:
      encoder: q(u | x): examples in [0, 1] to mean and log variance, (B, …).
      decoder: p(x | u): latents to (B, *shape); it knows the `shape` of an example.
    """

    def __init__(self, encoder: Any, decoder: Any):
        self.encoder, self.decoder = encoder, decoder

    def init(self, rng: jax.Array, x: jax.Array, conditions: Conditions) -> dict[str, Any]:
        encoder, decoder = jax.random.split(rng)
        u = jnp.zeros((x.shape[0], *self.shapes()[0]))
        return {
            "encoder": self.encoder.init(encoder, x, conditions)["params"],
            "decoder": self.decoder.init(decoder, u, conditions)["params"],
        }

    def shapes(self) -> list[tuple[int, ...]]:
        return [latent_shape(self.encoder, self.decoder.shape)]

    def encode(self, params: Any, x: jax.Array, conditions: Conditions) -> Group:
        return self.encoder.apply({"params": params["encoder"]}, x, conditions)

    def reparameterize(
        self, params: Any, encoded: Group, noise: Sequence[jax.Array], conditions: Conditions
    ) -> tuple[jax.Array, list[Group]]:
        mean, log_var = encoded
        u = mean + jnp.exp(log_var / 2) * noise[0]
        return self.generate(params, [u], conditions), [encoded]

    def generate(self, params: Any, u: Sequence[jax.Array], conditions: Conditions) -> jax.Array:
        return self.decoder.apply({"params": params["decoder"]}, u[0], conditions)


class HierarchicalLatents:
    """A bottom-up encoder, and a top-down decoder that draws one group after another.

    Args:
      encoder: `hierarchical_vae.BottomUp`.
      decoder: `hierarchical_vae.TopDown`.
    """

    def __init__(self, encoder: Any, decoder: Any):
        self.encoder, self.decoder = encoder, decoder

    def init(self, rng: jax.Array, x: jax.Array, conditions: Conditions) -> dict[str, Any]:
        encoder, decoder = jax.random.split(rng)
        encoded, variables = self.encoder.init_with_output(encoder, x, conditions)
        noise = [jnp.zeros((x.shape[0], *shape)) for shape in self.shapes()]
        return {
            "encoder": variables["params"],
            "decoder": self.decoder.init(decoder, noise, conditions, encoded)["params"],
        }

    def shapes(self) -> list[tuple[int, ...]]:
        return self.decoder.latent_shapes()

    def encode(self, params: Any, x: jax.Array, conditions: Conditions) -> list[jax.Array]:
        return self.encoder.apply({"params": params["encoder"]}, x, conditions)

    def reparameterize(
        self,
        params: Any,
        encoded: list[jax.Array],
        noise: Sequence[jax.Array],
        conditions: Conditions,
    ) -> tuple[jax.Array, list[Group]]:
        return self.decoder.apply({"params": params["decoder"]}, noise, conditions, encoded)

    def generate(self, params: Any, u: Sequence[jax.Array], conditions: Conditions) -> jax.Array:
        return self.decoder.apply({"params": params["decoder"]}, u, conditions)[0]


class HalvedLevels:
    """Base of configs whose networks halve the spatial axes between the entries of `channels`."""

    FIELDS: ClassVar[str] = "model.channels"  # that a person changes if examples are too small
    channels: tuple[int, ...]

    @property
    def factor(self) -> int:
        """How many values of an example a latent covers along each spatial axis."""
        return 2 ** (len(self.channels) - 1)

    def coarse(self, size: Sequence[int]) -> tuple[int, ...]:
        """The coarsest spatial sizes; UserError if the examples are too small."""
        return coarse_size(size, len(self.channels) - 1, self.FIELDS)

    def filled(self, size: Sequence[int]) -> tuple[int, ...]:
        """The spatial sizes as the networks read them; UserError if the examples are too small."""
        return filled_size(size, len(self.channels) - 1, self.FIELDS)


def posterior(x: jax.Array) -> Group:
    """The last axis of an encoder's output as mean and log variance, float32.

    The log variance is clipped to ±12, far outside what training visits, so that a wild first step
    stays finite.
    """
    mean, log_var = jnp.split(x.astype(jnp.float32), 2, -1)
    return mean, jnp.clip(log_var, -12.0, 12.0)


def concat_class(x: jax.Array, conditions: Conditions | None, num_classes: int) -> jax.Array:
    """(B, …, C) → (B, …, C + K): the one-hot class at every place; unchanged for 0 classes."""
    if not num_classes:
        return x
    one_hot = class_one_hot(conditions, x.shape[0], num_classes)
    one_hot = one_hot.reshape(len(x), *[1] * (x.ndim - 2), num_classes)
    one_hot = jnp.broadcast_to(one_hot, (*x.shape[:-1], num_classes))
    return jnp.concatenate([x, one_hot], -1)


def latent_shape(encoder: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an encoder's latents of an example of `shape`; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    (mean, _), _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)
    return mean.shape[1:]


def covered_size(encoder: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The spatial sizes that the latents of an example of `shape` cover."""
    return encoder.config.filled(shape[:-1])


def as_places(latent: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """A latent shape as (*spatial, c), of the rank of an example: a flat one is a single place."""
    return latent if len(latent) == len(shape) else (*[1] * (len(shape) - 1), math.prod(latent))


def noises(key_B: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Standard normal noise of each group."""
    return [normal(fold(key_B, i) if i else key_B, shape) for i, shape in enumerate(shapes)]
