"""Which noise levels a diffusion model knows, and what time its network is told at each.

σ is the deviation of the noise in x = y + σ n (Karras et al. 2022, EDM). Every process is this one
rescaled: σ² = (1 − ᾱ) / ᾱ for DDPM, σ = t / (1 − t) for flow matching.
"""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Schedule(Protocol):
    """Noise levels from the least to the most.

    Attributes:
      timesteps: how many levels there are; 0: any between the least and the most.
      sigma_min: the least σ > 0.
      sigma_max: the most, where sampling starts.
      grid: the usual grid of a walk from the most to none (`sampling.grids`).
    """

    timesteps: int
    grid: str

    @property
    def sigma_min(self) -> float: ...

    @property
    def sigma_max(self) -> float: ...

    def at(self, share: jax.Array) -> jax.Array:
        """σ where `share` of the time has passed: 0 the least, 1 the most."""
        ...

    def time(self, sigma_B: jax.Array) -> jax.Array:
        """What the network is told, about 0…1000."""
        ...

    def within(self, sigma: jax.Array) -> jax.Array:
        """The nearest σ for which the network can be asked."""
        ...


@dataclasses.dataclass(frozen=True)
class Karras:
    """EDM (Karras et al. 2022): time is ln σ / 4, scaled to our units."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    timesteps = 0
    grid = "karras"

    def at(self, share: jax.Array) -> jax.Array:
        low, high = np.log(self.sigma_min), np.log(self.sigma_max)
        return jnp.exp(low + share * (high - low))

    def time(self, sigma_B: jax.Array) -> jax.Array:
        return 250 * jnp.log(sigma_B)

    def within(self, sigma: jax.Array) -> jax.Array:
        return sigma


@dataclasses.dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2023; Lipman et al. 2023): x_t = (1 − t) y + t n, σ = t / (1 − t).

    t stays below 1, where σ is infinite.
    """

    t_min: float = 0.001
    t_max: float = 0.999

    timesteps = 0
    grid = "flow"

    @property
    def sigma_min(self) -> float:
        return self.t_min / (1 - self.t_min)

    @property
    def sigma_max(self) -> float:
        return self.t_max / (1 - self.t_max)

    def at(self, share: jax.Array) -> jax.Array:
        t = self.t_min + share * (self.t_max - self.t_min)
        return t / (1 - t)

    def time(self, sigma_B: jax.Array) -> jax.Array:
        return 1000 * sigma_B / (1 + sigma_B)

    def within(self, sigma: jax.Array) -> jax.Array:
        return jnp.clip(sigma, self.sigma_min, self.sigma_max)


@dataclasses.dataclass(frozen=True)
class Timesteps:
    """T levels given by how much noise each adds, β; the network is told which, 0…T − 1.

    Attributes:
      betas: "linear" (Ho et al. 2020); "scaled_linear": √β is (Rombach et al. 2022); "cosine"
        (Nichol & Dhariwal 2021), which has no ends to choose.
      timesteps: T.
      beta_start: β of the first timestep, for T = 1000.
      beta_end: of the last.

    Between two timesteps ln σ is interpolated, so that any σ has a time.
    """

    betas: str = "linear"
    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    grid = "linspace"

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

    def at(self, share: jax.Array) -> jax.Array:
        return self.of_index(share * (self.timesteps - 1))

    def of_index(self, index: jax.Array) -> jax.Array:
        """σ of timesteps 0…T − 1, and between them."""
        return jnp.exp(jnp.interp(index, jnp.arange(self.timesteps), self.log_sigmas))

    def time(self, sigma_B: jax.Array) -> jax.Array:
        index_B = jnp.interp(jnp.log(sigma_B), self.log_sigmas, jnp.arange(self.timesteps))
        return index_B * (1000 / self.timesteps)

    def within(self, sigma: jax.Array) -> jax.Array:
        return jnp.clip(sigma, self.sigma_min, self.sigma_max)


@functools.cache
def log_sigmas(betas: str, timesteps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """ln σ of the timesteps, (T,); in double precision, for ᾱ is a long product."""
    if betas != "cosine":
        # The published ends are those of T = 1000; other T add as much noise in all.
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


SCHEDULES = ("edm", "flow", "linear", "scaled_linear", "cosine")
