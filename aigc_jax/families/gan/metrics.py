"""Metrics of a GAN in training, and the ranges in which they are healthy.

Shapes: B batch; examples (B, …) of any rank.
"""

import math

import jax
import jax.numpy as jnp

from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import HealthCheck
from aigc_jax.ops.per_example import norm_per_example

HEALTH_CHECKS = (
    HealthCheck(
        "generator/diversity",
        low=0.2,
        high=math.inf,
        records=5,
        message="the generator has collapsed, its samples are nearly all the same: raise"
        " objective.r1 and objective.r2, or lower the generator's learning rate",
    ),
    HealthCheck(
        "critic/accuracy",
        low=0.0,
        high=0.995,
        records=10,
        message="the critic tells real from generated examples without a mistake, so the generator"
        " learns nothing from it: raise objective.r1 and objective.r2, or use objective.augment",
    ),
)


def diversity(real: jax.Array, fake: jax.Array, other_fake: jax.Array, weight_B: jax.Array) -> Mean:
    """Distance of two generated examples of the same conditions, over that of real and generated.

    About 1 if generated examples vary as real ones do; 0 if they are all the same.
    """
    between_B = norm_per_example(fake - other_fake)
    to_real_B = norm_per_example(real - fake)
    return Mean((between_B * weight_B).sum(), (to_real_B * weight_B).sum())


def score_metrics(
    real_B: jax.Array, fake_B: jax.Array, weight_B: jax.Array, boundary: jax.Array
) -> Metrics:
    """How well a critic tells real from generated examples.

    Not every loss has a score of its own that means "undecided" (the relativistic one and
    Wasserstein's have none): a real example counts as recognised above `boundary`, a generated one
    below. `accuracy` is the mean of the two.
    """
    right_B, exposed_B = real_B > boundary, fake_B < boundary
    return {
        "score_real": Mean.of(real_B, weight_B),
        "score_fake": Mean.of(fake_B, weight_B),
        "pairwise_accuracy": Mean.of(real_B > fake_B, weight_B),
        "accuracy_real": Mean.of(right_B, weight_B),
        "accuracy_fake": Mean.of(exposed_B, weight_B),
        "accuracy": Mean.of((right_B + exposed_B.astype(jnp.float32)) / 2, weight_B),
    }
