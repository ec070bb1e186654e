"""Constants of training that move from one value to another along the way."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cosine_schedule(
    start: float, end: float, steps: int
) -> Callable[[int | jax.Array], float | jax.Array]:
    """From start to end over so many steps by half a cosine; then it stays. 0 steps: always end."""
    if not steps:
        return lambda step: end

    def at(step: int | jax.Array) -> jax.Array:
        share = jnp.minimum(step / steps, 1)
        return end + (start - end) * (1 + jnp.cos(jnp.pi * share)) / 2

    return at
