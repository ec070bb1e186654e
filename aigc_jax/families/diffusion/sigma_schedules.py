"""The noise levels through which a sampler walks, from the most to none."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.families.diffusion.noise_schedules import Schedule

SigmaSchedule = Callable[
    [jax.Array, jax.Array], jax.Array
]  # (i, steps) → σ_i, falling to 0 at i = steps

SIGMA_SCHEDULES = ("auto", "karras", "linspace", "trailing", "leading", "flow")


def make_sigma_schedule(
    name: str, schedule: Schedule, rho: jax.Array | float = 7.0, shift: jax.Array | float = 1.0
) -> SigmaSchedule:
    """The grid of this name.

    Args:
      name: "karras": σ^(1/ρ) falls evenly (EDM, eq. 5). "linspace", "trailing", "leading": the
        schedule's time falls evenly, with both ends, without the last, without the first (Lin et
        al. 2024, table 2); the last two keep to whole timesteps if there are such. "flow":
        t = σ / (1 + σ) falls evenly to 0. "auto": the schedule's usual one.
      schedule: where the noise is most and least.
      rho: of "karras".
      shift: of "flow": σ · shift, for images of more pixels than those of training (Esser et al.
        2024, eq. 23).
    """
    name = schedule.grid if name == "auto" else name
    low, high, t = schedule.sigma_min, schedule.sigma_max, schedule.timesteps

    def sigma(i, steps):
        last = jnp.maximum(steps - 1, 1)
        if name == "karras":
            low_root, high_root = low ** (1 / rho), high ** (1 / rho)
            return (high_root + i / last * (low_root - high_root)) ** rho
        if name == "flow":
            part = high / (1 + high) * (1 - i / steps)
            return shift * part / (1 - part)
        if name == "linspace":
            return schedule.at(1 - i / last)
        if t:
            trailing = jnp.round(t - i * (t / steps)) - 1
            index = trailing if name == "trailing" else (steps - 1 - i) * (t // steps)
            return schedule.at(index / max(t - 1, 1))
        return schedule.at(1 - (i if name == "trailing" else i + 1) / steps)

    # A denominator that is not 0 where the result is thrown away.
    return lambda i, steps: jnp.where(i < steps, sigma(jnp.minimum(i, steps - 1), steps), 0.0)


def check_sigma_schedule(name: str, schedule: Schedule, steps: int) -> None:
    """Raises UserError for more steps than there are whole timesteps."""
    if name in ("trailing", "leading") and 0 < schedule.timesteps < steps:
        raise UserError(
            f"sample.grid={name} has at most {schedule.timesteps} steps, one for each timestep:"
            f" lower sample.steps={steps}, or choose another grid"
        )
