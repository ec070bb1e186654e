"""What a VAE's networks have in common: groups of latents whose prior is standard normal.

An autoencoder has one group, of any shape. A ladder has several, and each is drawn knowing those
above it; in units of its own prior it is standard normal as well, so that one bound fits all.
Shapes: B batch, H height, W width, C channels, N samples.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from aigc_jax.ops.random import fold, normal

# Mean and log variance of q(u | x) of a group, whose prior is N(0, 1); each (B, …).
Group = tuple[jax.Array, jax.Array]


class LatentGroups(Protocol):
    """An encoder and a decoder, whatever is between them."""

    num_classes: int

    def init(self, rng: jax.Array, x: jax.Array, label_B: jax.Array | None) -> dict[str, Any]:
        """The parameters, `encoder` and `decoder`."""
        ...

    def shapes(self) -> list[tuple[int, ...]]:
        """Of each group of latents, without B."""
        ...

    def read(self, params: Any, x: jax.Array, label_B: jax.Array | None) -> Any:
        """What the images say; to be drawn from as often as one likes."""
        ...

    def draw(
        self, params: Any, read: Any, noise: Sequence[jax.Array], label_B: jax.Array | None
    ) -> tuple[jax.Array, list[Group]]:
        """The decoder's output (B, H, W, C), and the groups; `noise` is standard normal."""
        ...

    def generate(self, params: Any, u: Sequence[jax.Array], label_N: jax.Array | None) -> jax.Array:
        """The decoder's output (N, H, W, C) for latents from the prior, in its units."""
        ...


class SingleLatent:
    """One encoder, one decoder, one group of latents between, flat or spatial.

    Args:
      encoder: q(u | x): images in [0, 1] to mean and log variance, (B, …).
      decoder: p(x | u): latents to (B, H, W, C, 1); it knows the images' `shape`.
    """

    def __init__(self, encoder: Any, decoder: Any):
        self.encoder, self.decoder, self.num_classes = encoder, decoder, encoder.num_classes

    def init(self, rng, x, label_B):
        encoder, decoder = jax.random.split(rng)
        u = jnp.zeros((x.shape[0], *self.shapes()[0]))
        return {
            "encoder": self.encoder.init(encoder, x, label_B)["params"],
            "decoder": self.decoder.init(decoder, u, label_B)["params"],
        }

    def shapes(self):
        return [latent_shape(self.encoder, self.decoder.shape)]

    def read(self, params, x, label_B):
        return self.encoder.apply({"params": params["encoder"]}, x, label_B)

    def draw(self, params, read, noise, label_B):
        mean, log_var = read
        return self.generate(params, [mean + jnp.exp(log_var / 2) * noise[0]], label_B), [read]

    def generate(self, params, u, label_N):
        return self.decoder.apply({"params": params["decoder"]}, u[0], label_N)[..., 0]


class HierarchicalLatents:
    """A bottom-up network that reads and a top-down network that draws group after group.

    Args:
      encoder, decoder: `models.ladder.BottomUp` and `TopDown`.
    """

    def __init__(self, encoder: Any, decoder: Any):
        self.encoder, self.decoder, self.num_classes = encoder, decoder, encoder.num_classes

    def init(self, rng, x, label_B):
        encoder, decoder = jax.random.split(rng)
        read, variables = self.encoder.init_with_output(encoder, x, label_B)
        noise = [jnp.zeros((x.shape[0], *shape)) for shape in self.shapes()]
        return {
            "encoder": variables["params"],
            "decoder": self.decoder.init(decoder, noise, label_B, read)["params"],
        }

    def shapes(self):
        return self.decoder.latent_shapes()

    def read(self, params, x, label_B):
        return self.encoder.apply({"params": params["encoder"]}, x, label_B)

    def draw(self, params, read, noise, label_B):
        return self.decoder.apply({"params": params["decoder"]}, noise, label_B, read)

    def generate(self, params, u, label_N):
        return self.decoder.apply({"params": params["decoder"]}, u, label_N)[0]


def latent_shape(encoder: Any, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape of an encoder's latents, without B; nothing is computed."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32) if encoder.num_classes else None
    (mean, _), _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x, label)
    return mean.shape[1:]


def noises(key_B: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Standard normal noise for each group."""
    return [normal(fold(key_B, i) if i else key_B, shape) for i, shape in enumerate(shapes)]


def as_place(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A latent shape as (h, w, c): a flat one is a single place."""
    return shape if len(shape) == 3 else (1, 1, math.prod(shape))
