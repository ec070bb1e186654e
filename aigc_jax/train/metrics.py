"""Losses and metrics as sums with weights, merged first and divided once."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mean:
    """A weighted mean that is still a sum: `total / weight`.

    Adding the totals and the weights of parts gives the mean of the whole exactly, however unevenly
    the parts are masked: microbatches, devices, processes, partial last batches.

    Attributes:
      total: scalar, Σ wᵢ xᵢ.
      weight: scalar, Σ wᵢ; it must not depend on parameters.
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array | None = None) -> "Mean":
        """The mean of `values` under `weights` of the same shape, or with weight one each."""
        values = jnp.asarray(values, jnp.float32)
        if weights is None:
            return cls(values.sum(), jnp.float32(values.size))
        weights = jnp.asarray(weights, jnp.float32)
        # A masked value may be anything, even infinite: 0 · ∞ must not enter the sum.
        return cls(jnp.where(weights != 0, values * weights, 0).sum(), weights.sum())

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> jax.Array:
        """The mean; 0 if nothing had weight."""
        return self.total / jnp.where(self.weight > 0, self.weight, 1)


Metrics = Mapping[str, Mean]


def merge(a: Metrics, b: Metrics) -> dict[str, Mean]:
    """The metrics of two parts of the data as those of the whole; a key may be in one only."""
    return {k: a[k] + b[k] if k in a and k in b else a.get(k, b.get(k)) for k in {**a, **b}}


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Fetches metrics from the devices and divides."""
    host: dict[str, Any] = jax.device_get(dict(metrics))
    return {k: float(m.total) / (float(m.weight) or 1.0) for k, m in sorted(host.items())}
