"""Distributions of the noise level in training.

Each is given by its quantile function: σ is a function of a number that is uniform in [0, 1), so
that a share of the noise levels can be drawn from, too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from aigc_jax.core.registry import Registry
from aigc_jax.families.diffusion.noise_schedules import Schedule


class NoiseDistribution(Protocol):
    """A distribution of σ > 0."""

    def quantile(self, u: jax.Array, schedule: Schedule) -> jax.Array:
        """The σ that is not exceeded with probability u, among those of the schedule."""
        ...


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """ln σ is normal (EDM, section 5).

    So is the logit of flow matching's t = σ / (1 + σ), which is ln σ: the logit-normal t of Esser
    et al. (2024) is the same distribution of noise, with mean 0 and standard deviation 1.
    """

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: jax.Array, schedule: Schedule) -> jax.Array:
        normal = jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))
        return schedule.clip(jnp.exp(self.mean + self.std * normal))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """The time of the schedule is uniform."""

    def quantile(self, u: jax.Array, schedule: Schedule) -> jax.Array:
        t = schedule.timesteps
        return schedule.sigma_at(jnp.floor(u * t) / max(t - 1, 1) if t else u)


# Functions of the typed config section `objective`.
NOISE_DISTRIBUTIONS: Registry[Callable[[Any], NoiseDistribution]] = Registry(
    "noise_distribution",
    "objective.noise_distribution",
    {
        "log_normal": lambda config: LogNormal(config.p_mean, config.p_std),
        "logit_normal": lambda config: LogNormal(config.t_mean, config.t_std),
        "uniform": lambda config: Uniform(),
    },
)
