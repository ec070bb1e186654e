"""A VAE of one group of latents as the first stage of another model.

Shapes: B batch, N samples, … spatial axes of the latents, c their channels.
"""

import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import conditions_of
from aigc_jax.core.objective import Batch, Mutables, Params
from aigc_jax.families.vae.latent_groups import SingleLatent, as_places, covered_size
from aigc_jax.families.vae.vae import VAE
from aigc_jax.ops.image import to_bytes
from aigc_jax.ops.random import fold, normal


class KLAutoencoder(VAE):
    """A VAE of one group of latents, flat or spatial: it can be the first stage of another model.

    Attributes:
      latent_shape: (*spatial, c) of its latents; flat ones are a single place.
      num_codes: 0, since they are continuous.
      covered: spatial sizes that its latents cover, of which an example is the middle.
    """

    latents: SingleLatent
    num_codes = 0

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return as_places(self.latents.shapes()[0], self.latents.decoder.shape)

    @property
    def covered(self) -> tuple[int, ...]:
        return covered_size(self.latents.encoder, self.latents.decoder.shape)

    def encode(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """Latents (B, *latent_shape) drawn from the posterior.

        They are of about unit scale if the KL term has weight enough; networks whose config has
        `shift_factor` and `scaling_factor` have them applied.
        """
        x = self._data(batch, key_B)
        conditions = conditions_of(batch, self.conditions)
        mean, log_var = self.latents.encode(params["model"], x, conditions)
        noise = normal(fold(key_B, 0), mean.shape[1:])
        shift, scale = self._scaling()
        u = (mean + jnp.exp(log_var / 2) * noise - shift) * scale
        return u.reshape(-1, *self.latent_shape)

    def decode(self, params: Params, mutables: Mutables, latent_N: jax.Array) -> jax.Array:
        """uint8 examples (N, …) of latents (N, *latent_shape), without conditions."""
        shift, scale = self._scaling()
        u = latent_N.reshape(-1, *self.latents.shapes()[0]) / scale + shift
        x = jax.nn.sigmoid(self.latents.generate(params["model"], [u], {}))
        return to_bytes(2 * self._undo_dequantization(x) - 1)

    def _scaling(self) -> tuple[float, float]:
        network = self.latents.encoder.config
        return getattr(network, "shift_factor", 0.0), getattr(network, "scaling_factor", 1.0)
