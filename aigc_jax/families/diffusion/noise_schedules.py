"""Noise schedules: the noise levels of a diffusion model, and the time that its network is given.

σ is the standard deviation of the noise in x = y + σ n (Karras et al. 2022, EDM). Every process is
this one rescaled: σ² = (1 − ᾱ) / ᾱ for DDPM, σ = t / (1 − t) for flow matching.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.registry import Registry


class Schedule(Protocol):
    """Noise levels from the lowest to the highest.

    Attributes:
      timesteps: number of levels; 0: any level between the lowest and the highest.
      sigma_schedule: the default of `sigma_schedules.SIGMA_SCHEDULES` for sampling.
    """

    @property
    def timesteps(self) -> int: ...

    @property
    def sigma_schedule(self) -> str: ...

    @property
    def sigma_min(self) -> float:
        """The lowest σ > 0."""
        ...

    @property
    def sigma_max(self) -> float:
        """The highest σ, at which sampling starts."""
        ...

    def sigma_at(self, fraction: jax.Array) -> jax.Array:
        """σ at a fraction of the time: 0 the lowest, 1 the highest."""
        ...

    def time(self, sigma_B: jax.Array) -> jax.Array:
        """The time that the network is given, about 0…1000."""
        ...

    def clip(self, sigma: jax.Array) -> jax.Array:
        """The nearest σ at which the network can be evaluated."""
        ...


@dataclasses.dataclass(frozen=True)
class Karras:
    """EDM (Karras et al. 2022): time is ln σ / 4, scaled to our units."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    timesteps = 0
    sigma_schedule = "karras"

    def sigma_at(self, fraction: jax.Array) -> jax.Array:
        low, high = np.log(self.sigma_min), np.log(self.sigma_max)
        return jnp.exp(low + fraction * (high - low))

    def time(self, sigma_B: jax.Array) -> jax.Array:
        return 250 * jnp.log(sigma_B)

    def clip(self, sigma: jax.Array) -> jax.Array:
        return sigma


@dataclasses.dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2023; Lipman et al. 2023): x_t = (1 − t) y + t n, σ = t / (1 − t).

    t stays below 1, where σ is infinite.
    """

    t_min: float = 0.001
    t_max: float = 0.999

    timesteps = 0
    sigma_schedule = "flow"

    @property
    def sigma_min(self) -> float:
        return self.t_min / (1 - self.t_min)

    @property
    def sigma_max(self) -> float:
        return self.t_max / (1 - self.t_max)

    def sigma_at(self, fraction: jax.Array) -> jax.Array:
        t = self.t_min + fraction * (self.t_max - self.t_min)
        return t / (1 - t)

    def time(self, sigma_B: jax.Array) -> jax.Array:
        return 1000 * sigma_B / (1 + sigma_B)

    def clip(self, sigma: jax.Array) -> jax.Array:
        return jnp.clip(sigma, self.sigma_min, self.sigma_max)


@dataclasses.dataclass(frozen=True)
class Timesteps:
    """T levels given by the noise β that each adds; the network is given the index, 0…T − 1.

    Attributes:
      betas: "linear" (Ho et al. 2020); "scaled_linear": √β is (Rombach et al. 2022); "cosine"
        (Nichol & Dhariwal 2021), which has no ends to set.
      timesteps: T.
      beta_start: β of the first timestep, for T = 1000.
      beta_end: of the last.

    ln σ is interpolated between timesteps, so that any σ has a time.
    """

    betas: str = "linear"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    sigma_schedule = "linspace"

    @property
    def sigma_min(self) -> float:
        return float(np.exp(self.log_sigmas[0]))

    @property
    def sigma_max(self) -> float:
        return float(np.exp(self.log_sigmas[-1]))

    @property
    def log_sigmas(self) -> np.ndarray:
        """ln σ, increasing, (T,)."""
        return log_sigmas(self.betas, self.timesteps, self.beta_start, self.beta_end)

    def sigma_at(self, fraction: jax.Array) -> jax.Array:
        return self.sigma_of_timestep(fraction * (self.timesteps - 1))

    def sigma_of_timestep(self, index: jax.Array) -> jax.Array:
        """σ of timesteps 0…T − 1, interpolated between them."""
        return jnp.exp(jnp.interp(index, jnp.arange(self.timesteps), self.log_sigmas))

    def time(self, sigma_B: jax.Array) -> jax.Array:
        index_B = jnp.interp(jnp.log(sigma_B), self.log_sigmas, jnp.arange(self.timesteps))
        return index_B * (1000 / self.timesteps)

    def clip(self, sigma: jax.Array) -> jax.Array:
        return jnp.clip(sigma, self.sigma_min, self.sigma_max)


@functools.cache
def log_sigmas(betas: str, timesteps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """ln σ of the timesteps, (T,); in double precision, since ᾱ is a long product."""
    if betas != "cosine":
        # The published ends are those of T = 1000; any other T adds the same noise in total.
        power = 2 if betas == "scaled_linear" else 1
        root = np.linspace(start ** (1 / power), end ** (1 / power), timesteps)
        beta = root**power * (1000 / timesteps)
    else:
        s, t = 0.008, np.arange(timesteps + 1) / timesteps
        f = np.cos((t + s) / (1 + s) * np.pi / 2) ** 2
        beta = 1 - f[1:] / f[:-1]
    log_alpha_bar = np.cumsum(np.log1p(-np.clip(beta, 0, 0.999)))
    # σ² = (1 − ᾱ) / ᾱ = e^(−ln ᾱ) − 1
    return np.log(np.expm1(-log_alpha_bar)) / 2


def _edm(config: Any) -> Karras:
    if config.sigma_min >= config.sigma_max:
        raise UserError(
            f"objective.sigma_min={config.sigma_min} must be less than"
            f" objective.sigma_max={config.sigma_max}"
        )
    return Karras(config.sigma_min, config.sigma_max)


def _timesteps(betas: str) -> Callable[[Any], Schedule]:
    return lambda c: Timesteps(betas, beta_start=c.beta_start, beta_end=c.beta_end)


# Functions of the typed config section `objective`.
NOISE_SCHEDULES: Registry[Callable[[Any], Schedule]] = Registry(
    "noise_schedule",
    "objective.schedule",
    {
        "edm": _edm,
        "flow": lambda config: Flow(),
        "linear": _timesteps("linear"),
        "scaled_linear": _timesteps("scaled_linear"),
        "cosine": _timesteps("cosine"),
    },
)
