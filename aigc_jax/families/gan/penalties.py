"""Penalties on the gradient of a critic's scores at its inputs.

Shapes: B batch; examples (B, …) of any rank.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.ops.per_example import expand_like, squared_norm_per_example

Score = Callable[[jax.Array], jax.Array]  # examples (B, …) → scores (B,)


class Weights(Protocol):
    """The config fields that weight the penalties; 0 leaves a penalty out.

    Attributes:
      r1: γ of γ/2 ‖∇D‖² at real examples.
      r2: the same at generated ones.
      gradient_penalty: λ of λ (‖∇D‖ − 1)² between real and generated examples.
    """

    @property
    def r1(self) -> float: ...
    @property
    def r2(self) -> float: ...
    @property
    def gradient_penalty(self) -> float: ...


def squared_gradient_norm(score: Score, x: jax.Array) -> jax.Array:
    """‖∇ score(x)‖² of each example, (B,)."""
    return squared_norm_per_example(jax.grad(lambda at: score(at).sum())(x))


def gradient_penalties(
    weights: Weights,
    score_real: Score,
    score_fake: Score,
    real: jax.Array,
    fake: jax.Array,
    mix_B: jax.Array,
    weight_B: jax.Array,
    gamma: jax.Array | float = 1.0,
) -> tuple[jax.Array, Metrics]:
    """The critic's penalties (B,), and their gradients' sizes as metrics.

    R1 and R2 of Mescheder et al. 2018; the penalty between of Gulrajani et al. 2017 (WGAN-GP).

    Args:
      weights: of the penalties.
      score_real: scores real examples and those between.
      score_fake: scores generated examples.
      real: real examples (B, …).
      fake: generated examples (B, …).
      mix_B: where between the two the gradient is taken, from 0 (real) to 1 (generated).
      weight_B: of the examples, for the metrics.
      gamma: factor of R1 and R2.
    """
    penalty_B, metrics = jnp.zeros(real.shape[0]), {}
    terms = (("r1", weights.r1, score_real, real), ("r2", weights.r2, score_fake, fake))
    for name, weight, score, x in terms:
        if weight:
            squared_B = squared_gradient_norm(score, x)
            metrics[name] = Mean.of(squared_B, weight_B)
            penalty_B += gamma * weight / 2 * squared_B
    if weights.gradient_penalty:
        between = real + expand_like(mix_B, real) * (fake - real)
        # The square root of 0 has no finite gradient.
        norm_B = jnp.sqrt(squared_gradient_norm(score_real, between) + 1e-12)
        metrics["gradient_norm"] = Mean.of(norm_B, weight_B)
        penalty_B += weights.gradient_penalty * (norm_B - 1) ** 2
    return penalty_B, metrics
