"""How a network becomes a denoiser D(x; σ), at which noise it is trained, and what errors weigh.

Everything is written in the coordinates of Karras et al. (2022, EDM): x = y + σ n, with y the clean
image and n standard normal. Four choices make a diffusion model, each independent of the others:

- the prediction: what the network answers, from which D follows by three coefficients;
- the schedule (`schedules`): which σ there are, and what time the network is told;
- the levels: how σ is drawn in training;
- the weighting of errors of D at σ.

So every sampler works with all of them. σ has shape (B, 1, 1, 1).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.families.diffusion.noise_schedules import Schedule

Network = Callable[[jax.Array, jax.Array], jax.Array]  # (x_BHWC, time_B in 0…1000) → output
Coefficients = tuple[jax.Array, jax.Array, jax.Array]


def _epsilon(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The noise n, of √ᾱ y + √(1 − ᾱ) n (Ho et al. 2020)."""
    return jnp.ones_like(sigma), -sigma, 1 / jnp.sqrt(1 + sigma**2)


def _v(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """√ᾱ n − √(1 − ᾱ) y (Salimans & Ho 2022, appendix D)."""
    alpha = 1 / jnp.sqrt(1 + sigma**2)
    return alpha**2, -sigma * alpha, alpha


def _x(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The clean image itself."""
    return jnp.zeros_like(sigma), jnp.ones_like(sigma), 1 / jnp.sqrt(1 + sigma**2)


def _edm(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """A mixture such that inputs and targets have unit variance at every σ (EDM, table 1)."""
    square = sigma**2 + sigma_data**2
    return sigma_data**2 / square, sigma * sigma_data / jnp.sqrt(square), 1 / jnp.sqrt(square)


def _flow(sigma: jax.Array, sigma_data: float) -> Coefficients:
    """The velocity n − y of (1 − t) y + t n (Lipman et al. 2023), t = σ / (1 + σ)."""
    return 1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma)


# c_skip, c_out, c_in of D = c_skip x + c_out F(c_in x, time), eq. 7 of EDM.
PREDICTIONS: dict[str, Callable[[jax.Array, float], Coefficients]] = {
    "edm": _edm,
    "epsilon": _epsilon,
    "v": _v,
    "x": _x,
    "flow": _flow,
}
WEIGHTINGS = ("uniform", "edm", "min_snr")


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """ln σ is normal (EDM, section 5).

    So is the logit of flow matching's t = σ / (1 + σ), which is ln σ: the logit-normal t of Esser
    et al. (2024) is the same distribution of noise, with a mean of 0 and a deviation of 1.
    """

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: jax.Array, schedule: Schedule) -> jax.Array:
        """The σ below which a share u of all draws lies."""
        normal = jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))
        return schedule.within(jnp.exp(self.mean + self.std * normal))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every time of the schedule is as likely as any other."""

    def quantile(self, u: jax.Array, schedule: Schedule) -> jax.Array:
        """The σ below which a share u of all draws lies."""
        t = schedule.timesteps
        return schedule.at(jnp.floor(u * t) / max(t - 1, 1) if t else u)


@dataclasses.dataclass(frozen=True)
class Preconditioning:
    """The four choices.

    Attributes:
      prediction: one of `PREDICTIONS`.
      schedule: which σ there are.
      levels: how σ is drawn.
      weighting: one of `WEIGHTINGS`. "uniform": every error of the network's own answer counts
        alike, the "simple" loss. "edm": λ(σ) = (σ² + σ_data²) / (σ σ_data)², which for EDM's
        prediction is the same. "min_snr": min(1 / σ², γ), in which the signal-to-noise ratio is
        1 / σ² (Hang et al. 2023).
      sigma_data: the standard deviation of the data, for EDM's prediction and weighting.
      gamma: of min_snr.
    """

    prediction: str
    schedule: Schedule
    levels: LogNormal | Uniform
    weighting: str = "uniform"
    sigma_data: float = 0.5
    gamma: float = 5.0

    def draw(self, u: jax.Array) -> jax.Array:
        """σ from numbers u uniform in [0, 1): the larger u, the more noise."""
        return self.levels.quantile(u, self.schedule)

    def denoise(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """D(x; σ)."""
        skip, out, scale = PREDICTIONS[self.prediction](sigma, self.sigma_data)
        return skip * x + out * network(scale * x, self.schedule.time(sigma[:, 0, 0, 0]))

    def weight(self, sigma: jax.Array) -> jax.Array:
        """What the squared error of D counts at σ."""
        if self.weighting == "edm":
            return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        if self.weighting == "min_snr":
            return jnp.minimum(1 / sigma**2, self.gamma)
        _, out, _ = PREDICTIONS[self.prediction](sigma, self.sigma_data)
        return 1 / out**2


# The schedule and the levels with which each prediction was published.
DEFAULTS = {
    "edm": ("edm", "log_normal"),
    "flow": ("flow", "logit_normal"),
    "epsilon": ("cosine", "uniform"),
    "v": ("cosine", "uniform"),
    "x": ("cosine", "uniform"),
}
