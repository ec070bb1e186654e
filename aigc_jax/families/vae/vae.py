"""Variational autoencoders (Kingma & Welling 2014), of one group of latents or of several.

Shapes: B batch, N samples; examples and latents (B, …) of any rank, G groups of latents. Everything
is in nats per example unless it says bits per dimension.

Bounds of binarised images are comparable with others of the same binarisation only:
- `dynamic`: bits are drawn each time an image is seen, with the grey value as probability;
- `static`: bits are drawn once for each image, by random numbers that belong to it. This is the
  protocol of Salakhutdinov & Murray (2008), whose bits were later published as a file. These are
  other bits than theirs: figures are comparable, but not equal to the last digit;
- `threshold`: white where the grey value is above a half.
The literature's figure is the IWAE bound with k = 50 in nats, here `iwae`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import config
from aigc_jax.core.conditions import Conditions, ConditionSpec, conditions_of
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.vae.bounds import kl_metrics, kl_per_latent, log_ratio, numbered
from aigc_jax.families.vae.latent_groups import LatentGroups, noises
from aigc_jax.ops.image import psnr, to_bytes
from aigc_jax.ops.per_example import sum_per_example
from aigc_jax.ops.random import content_keys, fold, normal, uniform

ACTIVE = 0.01  # variance of the posterior's mean above which a unit is active (Burda et al. 2016)
MAX_UNITS = 1024  # latents of a group whose posterior means are kept: evenly chosen, if it has more


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The section `objective` of a VAE."""

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
    """The section `sample` of a VAE."""

    temperature: float = option(
        1.0, low=0.0, flag="Scale of the prior's standard deviation; 0: its mean."
    )
    pixel_noise: bool = option(False, flag="Draw pixels from p(x | z) instead of taking its mean.")


class VAE(Objective):
    """One player, `model`: minus the evidence lower bound.

    Args:
      config: its constants.
      latents: the networks q(u | x) and p(x | u).
      levels: number of values of a pixel; a Gaussian density is turned into bits of these by
        uniform dequantisation (Theis et al. 2016).
      conditions: what the networks are given.
      field: of a batch, which is modelled: uint8 (B, …).
    """

    turns = ("model",)

    def __init__(
        self,
        config: VAEConfig,
        latents: LatentGroups,
        levels: int = 256,
        conditions: dict[str, ConditionSpec] | None = None,
        field: str = "image",
    ):
        self.config, self.latents, self.levels = config, latents, levels
        self.conditions, self.field = conditions or {}, field
        self._sample = jax.jit(self._generate, static_argnums=4)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        x = batch[self.field].astype(jnp.float32)
        params = self.latents.init(rng, x, conditions_of(batch, self.conditions))
        if self.config.likelihood == "gaussian" and self.config.learn_scale:
            params["log_scale"] = jnp.log(jnp.float32(self.config.scale))
        return {"model": params}, {}

    def _data(self, batch: Batch, key_B: jax.Array) -> jax.Array:
        """Examples in [0, 1]: binarised for Bernoulli if asked, dequantised for Gaussian."""
        x, binarize = batch[self.field].astype(jnp.float32) / 255, self.config.binarize
        if self.config.likelihood == "bernoulli" and binarize == "static":
            noise = uniform(content_keys(batch[self.field]), x.shape[1:])
            return (noise < x).astype(jnp.float32)
        noise = uniform(fold(key_B, 1), x.shape[1:])
        if self.config.likelihood == "gaussian":
            return (jnp.round(x * (self.levels - 1)) + noise) / self.levels
        if binarize == "dynamic":
            return (noise < x).astype(jnp.float32)
        if binarize == "threshold":
            return (x > 0.5).astype(jnp.float32)
        return x

    def _log_likelihood(self, params: Any, x: jax.Array, out: jax.Array) -> jax.Array:
        """log p(x | u) (B,) from the decoder's output; a density for the Gaussian."""
        if self.config.likelihood == "bernoulli":
            log_p = x * jax.nn.log_sigmoid(out) + (1 - x) * jax.nn.log_sigmoid(-out)
            return sum_per_example(log_p)
        log_scale = params.get("log_scale", jnp.log(self.config.scale))
        error = (x - jax.nn.sigmoid(out)) * jnp.exp(-log_scale)
        return sum_per_example(-(error**2) / 2 - log_scale - jnp.log(2 * jnp.pi) / 2)

    def loss(
        self,
        player: str,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, Mutables]]:
        """−log p(x | u) + β KL(q(u | x) ‖ N(0, 1)) with one u per example."""
        params, weight_B = params["model"], batch["weight"]
        x, given = self._data(batch, key_B), conditions_of(batch, self.conditions)
        encoded = self.latents.encode(params, x, given)
        noise = noises(fold(key_B, 0), self.latents.shapes())
        out, groups = self.latents.reparameterize(params, encoded, noise, given)
        reconstruction_B = -self._log_likelihood(params, x, out)
        kl_GBL = [kl_per_latent(*group) for group in groups]
        warmup = jnp.minimum(1.0, (step + 1) / max(self.config.kl_warmup_steps, 1))
        counted_B = sum(jnp.maximum(kl_BL, self.config.free_bits).sum(-1) for kl_BL in kl_GBL)
        loss_B = reconstruction_B + self.config.beta * warmup * counted_B
        kl_GB = [kl_BL.sum(-1) for kl_BL in kl_GBL]
        metrics = {
            "reconstruction": Mean.of(reconstruction_B, weight_B),
            "elbo": Mean.of(-reconstruction_B - sum(kl_GB), weight_B),
            **kl_metrics(kl_GB, weight_B),
        }
        if "log_scale" in params:
            metrics["scale"] = Mean.of(jnp.exp(params["log_scale"]))
        return Mean.of(loss_B, weight_B), (metrics, mutables)

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """`elbo`, `iwae` in nats per example; `bits_per_dim` of the tighter one; `loss` = −ELBO.

        `psnr` in dB is that of `reconstruct`, against what was encoded: of binarised images,
        the bits. `kl` is the sum of those of all groups, `kl_0` that of the top one.
        """
        params, weight_B = params["model"], batch["weight"]
        x, given = self._data(batch, key_B), conditions_of(batch, self.conditions)
        encoded = self.latents.encode(params, x, given)

        def draw(total_B, sample):
            noise = noises(fold(key_B, 2 + sample), self.latents.shapes())
            out, groups = self.latents.reparameterize(params, encoded, noise, given)
            likelihood_B = self._log_likelihood(params, x, out)
            kl_GB = [log_ratio(n, *group) for n, group in zip(noise, groups, strict=True)]
            log_weight_B = likelihood_B - sum(kl_GB)
            return jnp.logaddexp(total_B, log_weight_B), (log_weight_B, likelihood_B, kl_GB)

        k = self.config.importance_samples
        start_B = jnp.full(x.shape[0], -jnp.inf)
        total_B, (log_weight_kB, likelihood_kB, kl_GkB) = jax.lax.scan(draw, start_B, jnp.arange(k))
        iwae_B, elbo_B = total_B - jnp.log(k), log_weight_kB.mean(0)
        decoded = self._reconstruct(params, encoded, given)
        target = batch[self.field] / 255 if self.config.likelihood == "gaussian" else x
        # Grey pixels are not outcomes of a Bernoulli: then there is no likelihood to bound.
        proper = self.config.likelihood == "gaussian" or self.config.binarize != "none"
        bounds = {
            "iwae": Mean.of(iwae_B, weight_B),
            "bits_per_dim": Mean.of(self._bits_per_dim(iwae_B, x), weight_B),
        }
        return {
            "loss": Mean.of(-elbo_B, weight_B),
            "elbo": Mean.of(elbo_B, weight_B),
            **(bounds if proper else {}),
            **kl_metrics([kl_kB.mean(0) for kl_kB in kl_GkB], weight_B),
            "reconstruction": Mean.of(-likelihood_kB.mean(0), weight_B),
            "psnr": Mean.of(psnr(jnp.clip(decoded, 0, 1), target), weight_B),
        }

    def _bits_per_dim(self, log_p_B: jax.Array, x: jax.Array) -> jax.Array:
        bits_B = -log_p_B / (jnp.log(2.0) * x[0].size)
        return bits_B + (jnp.log2(self.levels) if self.config.likelihood == "gaussian" else 0.0)

    def predict(self, params: Params, mutables: Mutables, batch: Batch) -> dict[str, jax.Array]:
        """The posterior's mean of each group (B, ≤ 1024), given the means of those above.

        NaN for examples without weight. Bits and dequantisation are those of one draw per example.
        """
        params, given = params["model"], conditions_of(batch, self.conditions)
        x = self._data(batch, content_keys(batch[self.field]))
        encoded = self.latents.encode(params, x, given)
        zeros = [jnp.zeros((len(x), *shape)) for shape in self.latents.shapes()]
        _, groups = self.latents.reparameterize(params, encoded, zeros, given)
        real_B1 = batch["weight"][:, None] > 0
        found = {}
        for i, (mean, _) in enumerate(groups):
            mean_BL = mean.reshape(len(x), -1)
            size = mean_BL.shape[1]
            some = np.linspace(0, size - 1, min(size, MAX_UNITS)).astype(int)
            found[f"mean_{i}"] = jnp.where(real_B1, mean_BL[:, some], jnp.nan)
        return found

    def summarize(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """`active_units`: number of latents whose posterior mean varies over the examples.

        A unit is active if the variance is above 0.01 (Burda et al. 2016, section 5.1).
        """
        counts = []
        for i, shape in enumerate(self.latents.shapes()):
            mean_NL = predictions[f"mean_{i}"].astype(np.float64)
            real_NL = mean_NL[~np.isnan(mean_NL).any(1)]
            active = (real_NL.var(0) > ACTIVE).mean() if len(real_NL) else 0.0
            counts.append(float(active * np.prod(shape)))
        return {"active_units": sum(counts), **numbered("active_units", counts)}

    def reconstruct(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """uint8 examples (B, …): the mean of p(x | u) at the posterior's mean."""
        params, given = params["model"], conditions_of(batch, self.conditions)
        encoded = self.latents.encode(params, self._data(batch, key_B), given)
        return to_bytes(2 * self._reconstruct(params, encoded, given) - 1)

    def _reconstruct(self, params: Any, encoded: Any, given: Conditions) -> jax.Array:
        """As `reconstruct`, in [0, 1]."""
        rows = jax.tree.leaves(encoded)[0].shape[0]
        zeros = [jnp.zeros((rows, *shape)) for shape in self.latents.shapes()]
        out, _ = self.latents.reparameterize(params, encoded, zeros, given)
        return self._undo_dequantization(jax.nn.sigmoid(out))

    def _undo_dequantization(self, x: jax.Array) -> jax.Array:
        """Modelled values as values of pixels in [0, 1]."""
        if self.config.likelihood == "bernoulli":
            return x
        # Level l was spread over [l, l + 1) / levels.
        return (x * self.levels - 0.5) / (self.levels - 1)

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """uint8 examples (N, …)."""
        o: VAESample = request.options
        return self._sample(
            params["model"],
            key_N,
            request.conditions,
            jnp.float32(o.temperature),
            o.pixel_noise,
        )

    def _generate(
        self,
        params: Any,
        key_N: jax.Array,
        conditions: Conditions,
        temperature: jax.Array,
        pixel_noise: bool,
    ) -> jax.Array:
        u = [temperature * n for n in noises(fold(key_N, 0), self.latents.shapes())]
        x = jax.nn.sigmoid(self.latents.generate(params, u, conditions))
        if pixel_noise and self.config.likelihood == "bernoulli":
            x = (uniform(fold(key_N, 1), x.shape[1:]) < x).astype(jnp.float32)
        elif pixel_noise:
            log_scale = params.get("log_scale", jnp.log(self.config.scale))
            x += jnp.exp(log_scale) * normal(fold(key_N, 1), x.shape[1:])
        return to_bytes(2 * self._undo_dequantization(x) - 1)
