"""Reductions over all that belongs to an example, and broadcasts of its numbers; of any rank.

Shapes: B examples, each of any number of further axes.
"""

import jax
import jax.numpy as jnp


def example_axes(x: jax.Array) -> tuple[int, ...]:
    """All axes of `x` (B, …) but the first."""
    return tuple(range(1, x.ndim))


def expand_like(value_B: jax.Array, x: jax.Array) -> jax.Array:
    """(B,) → (B, 1, …, 1) of the rank of `x` (B, …), so that the two broadcast.

    Leading axes that `value_B` has already, such as those of (B, C), are kept.
    """
    return jnp.reshape(value_B, (*jnp.shape(value_B), *[1] * (x.ndim - jnp.ndim(value_B))))


def sum_per_example(x: jax.Array) -> jax.Array:
    """The sum of each example, (B, …) → (B,)."""
    return x.sum(example_axes(x))


def mean_per_example(x: jax.Array) -> jax.Array:
    """The mean of each example, (B, …) → (B,)."""
    return x.mean(example_axes(x))


def squared_norm_per_example(x: jax.Array) -> jax.Array:
    """The squared Euclidean norm of each example, (B, …) → (B,)."""
    return sum_per_example(x**2)


def norm_per_example(x: jax.Array) -> jax.Array:
    """The Euclidean norm of each example, (B, …) → (B,); its gradient at 0 is not finite."""
    return jnp.sqrt(squared_norm_per_example(x))
