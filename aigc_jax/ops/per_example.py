"""Reductions per example and broadcasts of per-example values, for any rank.

Shapes: B examples, each of any number of further axes.
"""

import jax
import jax.numpy as jnp


def example_axes(x: jax.Array) -> tuple[int, ...]:
    """Returns all axes of `x` (B, …) but the first."""
    return tuple(range(1, x.ndim))


def expand_like(value_B: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes (B,) to (B, 1, …, 1) of the rank of `x` (B, …), for broadcasting.

    Further axes of `value_B`, such as those of (B, C), are kept.
    """
    return jnp.reshape(value_B, (*jnp.shape(value_B), *[1] * (x.ndim - jnp.ndim(value_B))))


def sum_per_example(x: jax.Array) -> jax.Array:
    """Returns the sum of each example, (B, …) → (B,)."""
    return x.sum(example_axes(x))


def mean_per_example(x: jax.Array) -> jax.Array:
    """Returns the mean of each example, (B, …) → (B,)."""
    return x.mean(example_axes(x))


def squared_norm_per_example(x: jax.Array) -> jax.Array:
    """Returns the squared Euclidean norm of each example, (B, …) → (B,)."""
    return sum_per_example(x**2)


def norm_per_example(x: jax.Array) -> jax.Array:
    """Returns the Euclidean norm of each example, (B, …) → (B,); not differentiable at 0."""
    return jnp.sqrt(squared_norm_per_example(x))
