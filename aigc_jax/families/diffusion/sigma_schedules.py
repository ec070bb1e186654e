"""Sigma schedules: the noise levels σ₀ > σ₁ > … > 0 of a sampler's steps."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.registry import Registry
from aigc_jax.families.diffusion.noise_schedules import Schedule

Sigmas = Callable[[jax.Array, jax.Array], jax.Array]  # (i, steps) → σ_i; 0 for i = steps
Number = jax.Array | float


@dataclasses.dataclass(frozen=True)
class SigmaOptions:
    """Numbers of sigma schedules; they may be traced.

    Attributes:
      rho: of "karras".
      shift: of "flow": σ · shift, for examples with more pixels than those of training (Esser et
        al. 2024, eq. 23).
    """

    rho: Number = 7.0
    shift: Number = 1.0


def _karras(schedule: Schedule, options: SigmaOptions) -> Sigmas:
    """σ^(1/ρ) falls linearly (EDM, eq. 5)."""
    low, high, rho = schedule.sigma_min, schedule.sigma_max, options.rho

    def sigma(i, steps):
        low_root, high_root = low ** (1 / rho), high ** (1 / rho)
        return (high_root + i / jnp.maximum(steps - 1, 1) * (low_root - high_root)) ** rho

    return sigma


def _flow(schedule: Schedule, options: SigmaOptions) -> Sigmas:
    """t = σ / (1 + σ) falls linearly to 0."""
    high = schedule.sigma_max

    def sigma(i, steps):
        t = high / (1 + high) * (1 - i / steps)
        return options.shift * t / (1 - t)

    return sigma


def _linspace(schedule: Schedule, options: SigmaOptions) -> Sigmas:
    """The schedule's time falls linearly, both ends included (Lin et al. 2024, table 2)."""
    return lambda i, steps: schedule.sigma_at(1 - i / jnp.maximum(steps - 1, 1))


def _trailing(schedule: Schedule, options: SigmaOptions) -> Sigmas:
    """The schedule's time falls linearly without its lowest; in whole timesteps if it has some."""
    t = schedule.timesteps

    def sigma(i, steps):
        if not t:
            return schedule.sigma_at(1 - i / steps)
        return schedule.sigma_at((jnp.round(t - i * (t / steps)) - 1) / max(t - 1, 1))

    return sigma


def _leading(schedule: Schedule, options: SigmaOptions) -> Sigmas:
    """The schedule's time falls linearly without its highest; in whole timesteps as "trailing"."""
    t = schedule.timesteps

    def sigma(i, steps):
        if not t:
            return schedule.sigma_at(1 - (i + 1) / steps)
        return schedule.sigma_at((steps - 1 - i) * (t // steps) / max(t - 1, 1))

    return sigma


def _auto(schedule: Schedule, options: SigmaOptions) -> Sigmas:
    """The default of the noise schedule."""
    return SIGMA_SCHEDULES[schedule.sigma_schedule](schedule, options)


SIGMA_SCHEDULES: Registry[Callable[[Schedule, SigmaOptions], Sigmas]] = Registry(
    "sigma_schedule",
    "sample.sigma_schedule",
    {
        "auto": _auto,
        "karras": _karras,
        "linspace": _linspace,
        "trailing": _trailing,
        "leading": _leading,
        "flow": _flow,
    },
)


def make_sigmas(name: str, schedule: Schedule, rho: Number = 7.0, shift: Number = 1.0) -> Sigmas:
    """The sigma schedule of a name; see its function for its formula.

    Args:
      name: one of `SIGMA_SCHEDULES`.
      schedule: the noise levels that there are.
      rho: see `SigmaOptions`.
      shift: see `SigmaOptions`.
    """
    sigma = SIGMA_SCHEDULES[name](schedule, SigmaOptions(rho, shift))
    # i below `steps`, so that no denominator is 0 where the result is not used.
    return lambda i, steps: jnp.where(i < steps, sigma(jnp.minimum(i, steps - 1), steps), 0.0)


def check_sigma_schedule(name: str, schedule: Schedule, steps: int) -> None:
    """Raises UserError for more steps than there are whole timesteps."""
    if name in ("trailing", "leading") and 0 < schedule.timesteps < steps:
        raise UserError(
            f"sample.sigma_schedule={name} has at most {schedule.timesteps} steps, one per"
            f" timestep: lower sample.steps={steps}, or choose another sample.sigma_schedule"
        )
