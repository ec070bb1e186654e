"""Schedules of hyperparameters by training step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cosine_schedule(
    start: float, end: float, steps: int
) -> Callable[[int | jax.Array], float | jax.Array]:
    """Returns a half-cosine schedule from start to end over `steps`, constant afterwards."""
    if not steps:
        return lambda step: end

    def at(step: int | jax.Array) -> jax.Array:
        share = jnp.minimum(step / steps, 1)
        return end + (start - end) * (1 + jnp.cos(jnp.pi * share)) / 2

    return at
