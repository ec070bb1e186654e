"""Preconditioning: the denoiser D(x; σ) that a network makes, its noise levels and its loss.

Everything is written in the coordinates of Karras et al. (2022, EDM): x = y + σ n, with y the clean
example and n standard normal. Four choices make a diffusion model, each independent of the others:

- the prediction: what the network's output means; D follows from it by three coefficients;
- the noise schedule: the noise levels σ, and the time that the network is given at each;
- the noise distribution: that of σ in training;
- the weighting of the squared error of D at σ.

So every sampler works with all of them.
Shapes: B batch; σ of a batch is (B,).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core.registry import Registry
from aigc_jax.families.diffusion.noise_distributions import NOISE_DISTRIBUTIONS, NoiseDistribution
from aigc_jax.families.diffusion.noise_schedules import NOISE_SCHEDULES, Schedule
from aigc_jax.ops.per_example import expand_like

Network = Callable[[jax.Array, jax.Array], jax.Array]  # (x (B, …), time_B in 0…1000) → output
Coefficients = tuple[jax.Array, jax.Array, jax.Array]  # c_skip, c_out, c_in
Prediction = Callable[[jax.Array, float], Coefficients]  # of σ and σ_data


def _epsilon(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The noise n of √ᾱ y + √(1 − ᾱ) n (Ho et al. 2020)."""
    return jnp.ones_like(sigma), -sigma, 1 / jnp.sqrt(1 + sigma**2)


def _v(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """√ᾱ n − √(1 − ᾱ) y (Salimans & Ho 2022, appendix D)."""
    alpha = 1 / jnp.sqrt(1 + sigma**2)
    return alpha**2, -sigma * alpha, alpha


def _x(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The clean example itself."""
    return jnp.zeros_like(sigma), jnp.ones_like(sigma), 1 / jnp.sqrt(1 + sigma**2)


def _edm(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """A mixture such that inputs and targets have unit variance at every σ (EDM, table 1)."""
    square = sigma**2 + sigma_data**2
    return sigma_data**2 / square, sigma * sigma_data / jnp.sqrt(square), 1 / jnp.sqrt(square)


def _flow(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The velocity n − y of (1 − t) y + t n (Lipman et al. 2023), t = σ / (1 + σ)."""
    return 1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma)


# c_skip, c_out, c_in of D = c_skip x + c_out F(c_in x, time), eq. 7 of EDM.
PREDICTIONS: Registry[Prediction] = Registry(
    "prediction",
    "objective.prediction",
    {"edm": _edm, "epsilon": _epsilon, "v": _v, "x": _x, "flow": _flow},
)


@dataclasses.dataclass(frozen=True)
class Preconditioning:
    """The four choices.

    Attributes:
      prediction: one of `PREDICTIONS`.
      schedule: the noise levels.
      noise_distribution: of σ in training.
      weighting: one of `WEIGHTINGS`.
      sigma_data: the standard deviation of the data, for EDM's prediction and weighting.
      gamma: of min_snr.
    """

    prediction: str
    schedule: Schedule
    noise_distribution: NoiseDistribution
    weighting: str = "uniform"
    sigma_data: float = 0.5
    gamma: float = 5.0

    def sigma_quantile(self, u: jax.Array) -> jax.Array:
        """σ from numbers u uniform in [0, 1): the larger u, the more noise."""
        return self.noise_distribution.quantile(u, self.schedule)

    def coefficients(self, sigma: jax.Array) -> Coefficients:
        """c_skip, c_out, c_in at σ."""
        return PREDICTIONS[self.prediction](sigma, self.sigma_data)

    def denoise(self, network: Network, x: jax.Array, sigma_B: jax.Array) -> jax.Array:
        """D(x; σ), of the shape of `x` (B, …)."""
        skip, out, scale = (expand_like(c_B, x) for c_B in self.coefficients(sigma_B))
        return skip * x + out * network(scale * x, self.schedule.time(sigma_B))

    def weight(self, sigma: jax.Array) -> jax.Array:
        """The weight of the squared error of D at σ."""
        return WEIGHTINGS[self.weighting](sigma, self)


Weighting = Callable[[jax.Array, Preconditioning], jax.Array]  # λ(σ)


def _uniform_weight(sigma: jax.Array, p: Preconditioning) -> jax.Array:
    """Equal weights of errors of the network's output, the "simple" loss."""
    return 1 / p.coefficients(sigma)[1] ** 2


def _edm_weight(sigma: jax.Array, p: Preconditioning) -> jax.Array:
    """(σ² + σ_data²) / (σ σ_data)²; for EDM's prediction it equals "uniform"."""
    return (sigma**2 + p.sigma_data**2) / (sigma * p.sigma_data) ** 2


def _min_snr_weight(sigma: jax.Array, p: Preconditioning) -> jax.Array:
    """min(SNR, γ) with the signal-to-noise ratio 1 / σ² (Hang et al. 2023)."""
    return jnp.minimum(1 / sigma**2, p.gamma)


WEIGHTINGS: Registry[Weighting] = Registry(
    "weighting",
    "objective.weighting",
    {"uniform": _uniform_weight, "edm": _edm_weight, "min_snr": _min_snr_weight},
)

# The noise schedule and distribution with which each prediction was published.
DEFAULTS = {
    "edm": ("edm", "log_normal"),
    "flow": ("flow", "logit_normal"),
    "epsilon": ("cosine", "uniform"),
    "v": ("cosine", "uniform"),
    "x": ("cosine", "uniform"),
}


def defaults_of(prediction: str) -> tuple[str, str]:
    """The names of the noise schedule and distribution that "auto" means."""
    return DEFAULTS.get(prediction, DEFAULTS["edm"])


NOISE_SCHEDULES.register(
    "auto", lambda config: NOISE_SCHEDULES[defaults_of(config.prediction)[0]](config)
)
NOISE_DISTRIBUTIONS.register(
    "auto", lambda config: NOISE_DISTRIBUTIONS[defaults_of(config.prediction)[1]](config)
)


def make_preconditioning(config: Any) -> Preconditioning:
    """The four choices of a `DiffusionConfig`.

    Raises:
      UserError: if its numbers contradict each other.
    """
    return Preconditioning(
        config.prediction,
        NOISE_SCHEDULES[config.schedule](config),
        NOISE_DISTRIBUTIONS[config.noise_distribution](config),
        config.weighting,
        config.sigma_data,
        config.min_snr_gamma,
    )
