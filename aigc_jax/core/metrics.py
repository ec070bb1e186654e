"""Losses and metrics as weighted sums, merged first and divided once."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Mean:
    """A weighted mean as a pair of sums: `total / weight`.

    Adding totals and weights gives the exact mean over all parts (microbatches, devices, processes,
    partial last batches), however unevenly they are masked.

    Attributes:
      total: scalar, Σ wᵢ xᵢ; or one sum per example, (B,).
      weight: Σ wᵢ, of the same shape; it must not depend on parameters.
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array | None = None) -> "Mean":
        """Returns the mean of `values`, weighted by `weights` of the same shape or by 1."""
        values = jnp.asarray(values, jnp.float32)
        if weights is None:
            return cls(values.sum(), jnp.float32(values.size))
        weights = jnp.asarray(weights, jnp.float32)
        # A masked value may be anything, even infinite: 0 · ∞ must not enter the sum.
        return cls(jnp.where(weights != 0, values * weights, 0).sum(), weights.sum())

    @classmethod
    def rows(cls, values: jax.Array, weights: jax.Array) -> "Mean":
        """Like `of`, with a sum per example (B,) of values and weights (B, …)."""
        values, weights = jnp.asarray(values, jnp.float32), jnp.asarray(weights, jnp.float32)
        axes = tuple(range(1, values.ndim))
        return cls(jnp.where(weights != 0, values * weights, 0).sum(axes), weights.sum(axes))

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> jax.Array:
        """Returns the mean; 0 if the total weight is 0."""
        return self.total / jnp.where(self.weight > 0, self.weight, 1)


Metrics = Mapping[str, Mean]


def merge(a: Metrics, b: Metrics) -> dict[str, Mean]:
    """Adds up the metrics of two parts of the data; a key may be in one only."""
    return {k: a[k] + b[k] if k in a and k in b else either for k, either in {**a, **b}.items()}


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Fetches metrics from the devices and divides totals by weights."""
    host: dict[str, Any] = jax.device_get(dict(metrics))
    means = {}
    for name, mean in sorted(host.items()):
        total, weight = (float(np.sum(x, dtype=np.float64)) for x in (mean.total, mean.weight))
        means[name] = total / (weight or 1.0)
    return means
