"""Variational autoencoders (Kingma & Welling 2014), of one group of latents or of several.

Shapes: B batch, H height, W width, C channels, N samples; latents have any shape (B, …). Everything
is in nats per image unless it says bits per dimension.

Bounds of binarised images are comparable with others of the same binarisation only:
- `dynamic`: bits are drawn anew, with the grey value as probability, each time an image is seen;
- `static`: the same draw, made once for each image by random numbers that belong to it. This is
  the protocol of Salakhutdinov & Murray (2008), whose bits were later published as a file. It is
  another draw than theirs: figures agree in kind, not to the last digit;
- `threshold`: white where the grey value is above a half.
The literature's figure is the IWAE bound with k = 50 in nats, here `iwae`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import config
from aigc_jax.core.conditions import class_conditions, label_of
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Batch, Objective
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.vae.latent_groups import LatentGroups, SingleLatent, as_place, noises
from aigc_jax.ops.image import psnr, to_bytes
from aigc_jax.ops.random import content_keys, fold, normal, uniform

PIXELS = (1, 2, 3)
ACTIVE = 0.01  # variance of the posterior's mean above which a unit is active (Burda et al. 2016)
UNITS = 1024  # of a group with more latents, so many stand for all


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    likelihood: str = option("gaussian", choices=("bernoulli", "gaussian"))
    # For bernoulli; see above.
    binarize: str = option("none", choices=("none", "dynamic", "static", "threshold"))
    scale: float = option(0.1, low=1e-6)  # gaussian: standard deviation of a pixel in [0, 1]
    learn_scale: bool = True  # … and whether it is learned (Rybkin et al. 2021, σ-VAE)
    beta: float = option(1.0, low=0.0)  # weight of the KL term (Higgins et al. 2017)
    kl_warmup_steps: int = option(0, low=0)  # β grows to its value over these steps
    free_bits: float = option(0.0, low=0.0)  # nats per latent and image below which KL is free
    importance_samples: int = option(
        50, low=1, resumable=True
    )  # k of the IWAE bound (Burda et al. 2016)


@dataclasses.dataclass(frozen=True)
class VAESample(config.Sample):
    temperature: float = option(
        1.0, low=0.0, flag="Scale of the prior's standard deviation; 0: its mean."
    )
    pixel_noise: bool = option(False, flag="Draw pixels from p(x | z) instead of taking its mean.")


class VAE(Objective):
    """One player, `model`: minus the evidence lower bound.

    Args:
      config: its constants.
      latents: the networks q(u | x) and p(x | u).
      levels: the number of values a pixel can have; a Gaussian density is turned into bits of these
        by uniform dequantisation (Theis et al. 2016).
    """

    turns = ("model",)

    def __init__(self, config: VAEConfig, latents: LatentGroups, levels: int = 256):
        self.config, self.latents, self.levels = config, latents, levels
        self.num_classes = latents.num_classes
        self.conditions = class_conditions(self.num_classes)
        self._sample = jax.jit(self._generate, static_argnums=4)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        x = batch["image"].astype(jnp.float32)
        params = self.latents.init(rng, x, self._label(batch))
        if self.config.likelihood == "gaussian" and self.config.learn_scale:
            params["log_scale"] = jnp.log(jnp.float32(self.config.scale))
        return {"model": params}, {}

    def _label(self, batch: Batch) -> jax.Array | None:
        return batch["label"] if self.num_classes else None

    def _data(self, batch: Batch, key_B: jax.Array) -> jax.Array:
        """Images in [0, 1]: binarised for Bernoulli if asked, dequantised for Gaussian."""
        image, binarize = batch["image"].astype(jnp.float32) / 255, self.config.binarize
        if self.config.likelihood == "bernoulli" and binarize == "static":
            return (uniform(content_keys(batch["image"]), image.shape[1:]) < image).astype(
                jnp.float32
            )
        noise = uniform(fold(key_B, 1), image.shape[1:])
        if self.config.likelihood == "gaussian":
            return (jnp.round(image * (self.levels - 1)) + noise) / self.levels
        if binarize == "dynamic":
            return (noise < image).astype(jnp.float32)
        if binarize == "threshold":
            return (image > 0.5).astype(jnp.float32)
        return image

    def _log_likelihood(self, params, x, out) -> jax.Array:
        """log p(x | u) per image from the decoder's output; a density for the Gaussian."""
        if self.config.likelihood == "bernoulli":
            return (x * jax.nn.log_sigmoid(out) + (1 - x) * jax.nn.log_sigmoid(-out)).sum(PIXELS)
        log_scale = params.get("log_scale", jnp.log(self.config.scale))
        error = (x - jax.nn.sigmoid(out)) * jnp.exp(-log_scale)
        return (-(error**2) / 2 - log_scale - jnp.log(2 * jnp.pi) / 2).sum(PIXELS)

    def loss(self, player, params, mutables, batch, key_B, step):
        """−log p(x | u) + β KL(q(u | x) ‖ N(0, 1)) with one u per image."""
        params, label_B, weight_B = params["model"], self._label(batch), batch["weight"]
        x = self._data(batch, key_B)
        read = self.latents.read(params, x, label_B)
        noise = noises(fold(key_B, 0), self.latents.shapes())
        out, groups = self.latents.draw(params, read, noise, label_B)
        reconstruction_B = -self._log_likelihood(params, x, out)
        kl_GBL = [kl(*group) for group in groups]
        warmth = jnp.minimum(1.0, (step + 1) / max(self.config.kl_warmup_steps, 1))
        counted_B = sum(jnp.maximum(kl_BL, self.config.free_bits).sum(-1) for kl_BL in kl_GBL)
        loss_B = reconstruction_B + self.config.beta * warmth * counted_B
        kl_GB = [kl_BL.sum(-1) for kl_BL in kl_GBL]
        metrics = {
            "reconstruction": Mean.of(reconstruction_B, weight_B),
            "elbo": Mean.of(-reconstruction_B - sum(kl_GB), weight_B),
            **_by_group(kl_GB, weight_B),
        }
        if "log_scale" in params:
            metrics["scale"] = Mean.of(jnp.exp(params["log_scale"]))
        return Mean.of(loss_B, weight_B), (metrics, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        """`elbo`, `iwae` in nats per image; `bits_per_dim` of the tighter one; `loss` = −ELBO.

        `psnr` in dB is that of `reconstruct`, against what was encoded: of binarised images,
        the bits. `kl` is the sum of those of all groups, `kl_0` that of the top one.
        """
        params, label_B, weight_B = params["model"], self._label(batch), batch["weight"]
        x = self._data(batch, key_B)
        read = self.latents.read(params, x, label_B)

        def draw(total_B, sample):
            noise = noises(fold(key_B, 2 + sample), self.latents.shapes())
            out, groups = self.latents.draw(params, read, noise, label_B)
            likelihood_B = self._log_likelihood(params, x, out)
            kl_GB = [_log_ratio(n, *group) for n, group in zip(noise, groups, strict=True)]
            log_weight_B = likelihood_B - sum(kl_GB)
            return jnp.logaddexp(total_B, log_weight_B), (log_weight_B, likelihood_B, kl_GB)

        k = self.config.importance_samples
        start_B = jnp.full(x.shape[0], -jnp.inf)
        total_B, (log_weight_kB, likelihood_kB, kl_GkB) = jax.lax.scan(draw, start_B, jnp.arange(k))
        iwae_B, elbo_B = total_B - jnp.log(k), log_weight_kB.mean(0)
        shown = self._reconstruct(params, read, label_B)
        encoded = batch["image"] / 255 if self.config.likelihood == "gaussian" else x
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
            **_by_group([kl_kB.mean(0) for kl_kB in kl_GkB], weight_B),
            "reconstruction": Mean.of(-likelihood_kB.mean(0), weight_B),
            "psnr": Mean.of(psnr(jnp.clip(shown, 0, 1), encoded), weight_B),
        }

    def _bits_per_dim(self, log_p_B: jax.Array, x: jax.Array) -> jax.Array:
        bits_B = -log_p_B / (jnp.log(2.0) * x[0].size)
        return bits_B + (jnp.log2(self.levels) if self.config.likelihood == "gaussian" else 0.0)

    def predict(self, params, mutables, batch) -> dict[str, jax.Array]:
        """Of each group the posterior's mean (B, ≤ 1024), everything above at its mean too.

        NaN for what only fills up a batch. Bits and dequantisation are those of one draw per image.
        """
        params, label_B = params["model"], self._label(batch)
        x = self._data(batch, content_keys(batch["image"]))
        read = self.latents.read(params, x, label_B)
        zeros = [jnp.zeros((len(x), *shape)) for shape in self.latents.shapes()]
        _, groups = self.latents.draw(params, read, zeros, label_B)
        real_B1 = batch["weight"][:, None] > 0
        found = {}
        for i, (mean, _) in enumerate(groups):
            mean_BL = mean.reshape(len(x), -1)
            size = mean_BL.shape[1]
            some = np.linspace(0, size - 1, min(size, UNITS)).astype(int)
            found[f"mean_{i}"] = jnp.where(real_B1, mean_BL[:, some], jnp.nan)
        return found

    def summarize(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """`active_units`: how many latents' posterior mean varies over the images.

        A unit is active if the variance is above 0.01 (Burda et al. 2016, section 5.1).
        """
        counts = []
        for i, shape in enumerate(self.latents.shapes()):
            mean_NL = predictions[f"mean_{i}"].astype(np.float64)
            real_NL = mean_NL[~np.isnan(mean_NL).any(1)]
            active = (real_NL.var(0) > ACTIVE).mean() if len(real_NL) else 0.0
            counts.append(float(active * np.prod(shape)))
        return {"active_units": sum(counts), **_numbered("active_units", counts)}

    def reconstruct(self, params, mutables, batch, key_B) -> jax.Array:
        """uint8 images (B, H, W, C): decoded from the posterior's mean, as their mean."""
        params, label_B = params["model"], self._label(batch)
        read = self.latents.read(params, self._data(batch, key_B), label_B)
        return to_bytes(2 * self._reconstruct(params, read, label_B) - 1)

    def _reconstruct(self, params, read, label_B) -> jax.Array:
        rows = jax.tree.leaves(read)[0].shape[0]
        zeros = [jnp.zeros((rows, *shape)) for shape in self.latents.shapes()]
        return self._grey(jax.nn.sigmoid(self.latents.draw(params, read, zeros, label_B)[0]))

    def _grey(self, x: jax.Array) -> jax.Array:
        """What is modelled, as grey values in [0, 1]."""
        if self.config.likelihood == "bernoulli":
            return x
        # Undo dequantisation: level l was spread over [l, l + 1) / levels.
        return (x * self.levels - 0.5) / (self.levels - 1)

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """uint8 images (N, H, W, C)."""
        o: VAESample = request.options
        return self._sample(
            params["model"],
            key_N,
            label_of(request.conditions),
            jnp.float32(o.temperature),
            o.pixel_noise,
        )

    def _generate(self, params, key_N, label_N, temperature, pixel_noise):
        u = [temperature * n for n in noises(fold(key_N, 0), self.latents.shapes())]
        x = jax.nn.sigmoid(self.latents.generate(params, u, label_N))
        if pixel_noise and self.config.likelihood == "bernoulli":
            x = (uniform(fold(key_N, 1), x.shape[1:]) < x).astype(jnp.float32)
        elif pixel_noise:
            log_scale = params.get("log_scale", jnp.log(self.config.scale))
            x += jnp.exp(log_scale) * normal(fold(key_N, 1), x.shape[1:])
        return to_bytes(2 * self._grey(x) - 1)


class KLAutoencoder(VAE):
    """A VAE of one group of latents, flat or spatial: it can be the first stage of another model.

    Attributes:
      latent_shape: (h, w, c) of its latents; flat ones are a single place.
      num_codes: 0, since they are continuous.
      covered: (H, W) that its latents cover, of which the images are the middle.
    """

    latents: SingleLatent
    num_codes = 0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return as_place(self.latents.shapes()[0])

    @property
    def covered(self) -> tuple[int, int]:
        return self.latents.encoder.config.filled(self.latents.decoder.shape[:2])

    def encode(self, params, mutables, batch, key_B) -> jax.Array:
        """Latents (B, h, w, c) drawn from the posterior.

        They are of about unit scale if the KL term has weight enough; networks that say how theirs
        are to be shifted and scaled for a model over them have it done.
        """
        x = self._data(batch, key_B)
        mean, log_var = self.latents.read(params["model"], x, self._label(batch))
        noise = normal(fold(key_B, 0), mean.shape[1:])
        shift, scale = self._scaling()
        u = (mean + jnp.exp(log_var / 2) * noise - shift) * scale
        return u.reshape(-1, *self.latent_shape)

    def decode(self, params, mutables, latent_N) -> jax.Array:
        """uint8 images (N, H, W, C) of latents (N, h, w, c), without a class."""
        shift, scale = self._scaling()
        u = latent_N.reshape(-1, *self.latents.shapes()[0]) / scale + shift
        x = jax.nn.sigmoid(self.latents.generate(params["model"], [u], None))
        return to_bytes(2 * self._grey(x) - 1)

    def _scaling(self) -> tuple[float, float]:
        network = self.latents.encoder.config
        return getattr(network, "shift_factor", 0.0), getattr(network, "scaling_factor", 1.0)


def kl(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mean, var) ‖ N(0, 1)) of each latent, (B, L)."""
    nats = (mean**2 + jnp.exp(log_var) - log_var - 1) / 2
    return nats.reshape(len(nats), -1)


def _log_ratio(noise: jax.Array, mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """log q(u | x) − log N(u; 0, 1) at u = mean + std · noise, (B,)."""
    u = mean + jnp.exp(log_var / 2) * noise
    return ((u**2 - noise**2 - log_var) / 2).reshape(len(u), -1).sum(-1)


def _by_group(kl_GB: list[jax.Array], weight_B: jax.Array) -> dict[str, Mean]:
    means = [Mean.of(kl_B, weight_B) for kl_B in kl_GB]
    return {"kl": Mean.of(sum(kl_GB), weight_B), **_numbered("kl", means)}


def _numbered(name: str, values: list[Any]) -> dict[str, Any]:
    """`name_0`, `name_1`, …; nothing if there is only one value."""
    return {f"{name}_{i}": value for i, value in enumerate(values)} if len(values) > 1 else {}
