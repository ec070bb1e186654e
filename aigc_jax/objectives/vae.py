"""Variational autoencoders (Kingma & Welling 2014).

Shapes: B batch, H height, W width, C channels, Z latent size, N samples. Everything is in nats per
image unless it says bits per dimension.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax import config
from aigc_jax.config import option
from aigc_jax.models.autoencoder import Decoder, Encoder
from aigc_jax.objectives.base import Batch, Request
from aigc_jax.ops.image import to_bytes
from aigc_jax.ops.random import fold, normal, uniform
from aigc_jax.train.metrics import Mean

PIXELS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    likelihood: str = option("gaussian", choices=("bernoulli", "gaussian"))
    binarize: str = option("none", choices=("none", "dynamic", "threshold"))  # for bernoulli
    scale: float = option(0.1, low=1e-6)  # gaussian: standard deviation of a pixel in [0, 1]
    learn_scale: bool = True  # … and whether it is learned (Rybkin et al. 2021, σ-VAE)
    beta: float = option(1.0, low=0.0)  # weight of the KL term (Higgins et al. 2017)
    kl_warmup_steps: int = option(0, low=0)  # β grows to its value over these steps
    free_bits: float = option(0.0, low=0.0)  # nats per latent and image below which KL is free
    importance_samples: int = option(50, low=1)  # k of the IWAE bound (Burda et al. 2016)


@dataclasses.dataclass(frozen=True)
class VAESample(config.Sample):
    label: int = option(-1, low=-1)  # one class for all; −1: all in turn
    temperature: float = option(1.0, low=0.0)  # scale of the latent
    pixel_noise: bool = False  # draw pixels from p(x | z) instead of showing their mean


class VAE:
    """One player, `model`: minus the evidence lower bound.

    Args:
      config: its constants.
      encoder: q(z | x).
      decoder: p(x | z).
      levels: the number of values a pixel can have; a Gaussian density is turned into bits of these
        by uniform dequantisation (Theis et al. 2016).
    """

    turns = ("model",)

    def __init__(self, config: VAEConfig, encoder: Encoder, decoder: Decoder, levels: int = 256):
        self.config, self.encoder, self.decoder, self.levels = config, encoder, decoder, levels
        self.num_classes = encoder.num_classes
        self._sample = jax.jit(self._generate, static_argnums=4)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        label_B = self._label(batch)
        x = batch["image"].astype(jnp.float32)
        z_BZ = jnp.zeros((x.shape[0], self.encoder.config.latent))
        encoder, decoder = jax.random.split(rng)
        params = {
            "encoder": self.encoder.init(encoder, x, label_B)["params"],
            "decoder": self.decoder.init(decoder, z_BZ, label_B)["params"],
        }
        if self.config.likelihood == "gaussian" and self.config.learn_scale:
            params["log_scale"] = jnp.log(jnp.float32(self.config.scale))
        return {"model": params}, {}

    def _label(self, batch: Batch) -> jax.Array | None:
        return batch["label"] if self.num_classes else None

    def _data(self, batch: Batch, key_B: jax.Array) -> jax.Array:
        """Images in [0, 1]: binarised for Bernoulli if asked, dequantised for Gaussian."""
        image = batch["image"].astype(jnp.float32) / 255
        noise = uniform(fold(key_B, 1), image.shape[1:])
        if self.config.likelihood == "gaussian":
            return (jnp.round(image * (self.levels - 1)) + noise) / self.levels
        if self.config.binarize == "dynamic":
            return (noise < image).astype(jnp.float32)
        if self.config.binarize == "threshold":
            return (image > 0.5).astype(jnp.float32)
        return image

    def _log_likelihood(self, params, x, z_BZ, label_B) -> jax.Array:
        """log p(x | z) per image; a density for the Gaussian."""
        out = self.decoder.apply({"params": params["decoder"]}, z_BZ, label_B)[..., 0]
        if self.config.likelihood == "bernoulli":
            return (x * jax.nn.log_sigmoid(out) + (1 - x) * jax.nn.log_sigmoid(-out)).sum(PIXELS)
        log_scale = params.get("log_scale", jnp.log(self.config.scale))
        error = (x - jax.nn.sigmoid(out)) * jnp.exp(-log_scale)
        return (-(error**2) / 2 - log_scale - jnp.log(2 * jnp.pi) / 2).sum(PIXELS)

    def _encode(self, params, x, label_B):
        return self.encoder.apply({"params": params["encoder"]}, x, label_B)

    def loss(self, player, params, mutables, batch, key_B, step):
        """−log p(x | z) + β KL(q(z | x) ‖ N(0, 1)) with one z per image."""
        params, label_B, weight_B = params["model"], self._label(batch), batch["weight"]
        x = self._data(batch, key_B)
        mean_BZ, log_var_BZ = self._encode(params, x, label_B)
        noise_BZ = normal(fold(key_B, 0), mean_BZ.shape[1:])
        z_BZ = mean_BZ + jnp.exp(log_var_BZ / 2) * noise_BZ
        reconstruction_B = -self._log_likelihood(params, x, z_BZ, label_B)
        kl_BZ = (mean_BZ**2 + jnp.exp(log_var_BZ) - log_var_BZ - 1) / 2
        warmth = jnp.minimum(1.0, (step + 1) / max(self.config.kl_warmup_steps, 1))
        counted_B = jnp.maximum(kl_BZ, self.config.free_bits).sum(-1)
        loss_B = reconstruction_B + self.config.beta * warmth * counted_B
        metrics = {
            "reconstruction": Mean.of(reconstruction_B, weight_B),
            "kl": Mean.of(kl_BZ.sum(-1), weight_B),
            "elbo": Mean.of(-reconstruction_B - kl_BZ.sum(-1), weight_B),
        }
        if "log_scale" in params:
            metrics["scale"] = Mean.of(jnp.exp(params["log_scale"]))
        return Mean.of(loss_B, weight_B), (metrics, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        """`elbo`, `iwae` in nats per image; `bits_per_dim` of the tighter one; `loss` = −ELBO."""
        params, label_B, weight_B = params["model"], self._label(batch), batch["weight"]
        x = self._data(batch, key_B)
        mean_BZ, log_var_BZ = self._encode(params, x, label_B)

        def draw(total_B, sample):
            noise_BZ = normal(fold(key_B, 2 + sample), mean_BZ.shape[1:])
            z_BZ = mean_BZ + jnp.exp(log_var_BZ / 2) * noise_BZ
            log_prior_B = -(z_BZ**2).sum(-1) / 2
            log_posterior_B = -((noise_BZ**2 + log_var_BZ) / 2).sum(-1)
            likelihood_B = self._log_likelihood(params, x, z_BZ, label_B)
            log_weight_B = likelihood_B + log_prior_B - log_posterior_B
            return jnp.logaddexp(total_B, log_weight_B), (log_weight_B, likelihood_B)

        k = self.config.importance_samples
        start_B = jnp.full(x.shape[0], -jnp.inf)
        total_B, (log_weight_kB, likelihood_kB) = jax.lax.scan(draw, start_B, jnp.arange(k))
        iwae_B, elbo_B = total_B - jnp.log(k), log_weight_kB.mean(0)
        reconstruction_B = -likelihood_kB.mean(0)
        # Grey pixels are no outcomes of a Bernoulli: then there is no likelihood to bound.
        proper = self.config.likelihood == "gaussian" or self.config.binarize != "none"
        bounds = {
            "iwae": Mean.of(iwae_B, weight_B),
            "bits_per_dim": Mean.of(self._bits_per_dim(iwae_B, x), weight_B),
        }
        return {
            "loss": Mean.of(-elbo_B, weight_B),
            "elbo": Mean.of(elbo_B, weight_B),
            **(bounds if proper else {}),
            "kl": Mean.of(-elbo_B - reconstruction_B, weight_B),
            "reconstruction": Mean.of(reconstruction_B, weight_B),
        }

    def _bits_per_dim(self, log_p_B: jax.Array, x: jax.Array) -> jax.Array:
        bits_B = -log_p_B / (jnp.log(2.0) * x[0].size)
        return bits_B + (jnp.log2(self.levels) if self.config.likelihood == "gaussian" else 0.0)

    def sample(self, params, mutables, key_N, request: Request) -> jax.Array:
        """uint8 images (N, H, W, C)."""
        o: VAESample = request.options
        return self._sample(
            params["model"], key_N, request.label_N, jnp.float32(o.temperature), o.pixel_noise
        )

    def _generate(self, params, key_N, label_N, temperature, pixel_noise):
        z_NZ = temperature * normal(fold(key_N, 0), (self.encoder.config.latent,))
        x = jax.nn.sigmoid(self.decoder.apply({"params": params["decoder"]}, z_NZ, label_N)[..., 0])
        bernoulli = self.config.likelihood == "bernoulli"
        if pixel_noise and bernoulli:
            x = (uniform(fold(key_N, 1), x.shape[1:]) < x).astype(jnp.float32)
        elif pixel_noise:
            log_scale = params.get("log_scale", jnp.log(self.config.scale))
            x += jnp.exp(log_scale) * normal(fold(key_N, 1), x.shape[1:])
        if not bernoulli:
            # Undo dequantisation: level l was spread over [l, l + 1) / levels.
            x = (x * self.levels - 0.5) / (self.levels - 1)
        return to_bytes(2 * x - 1)
