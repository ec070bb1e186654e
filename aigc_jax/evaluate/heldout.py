"""A family's own metrics over held-out data."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from aigc_jax.objectives.base import Objective
from aigc_jax.ops.random import numbered_keys
from aigc_jax.parallel.mesh import put_batch
from aigc_jax.train.metrics import Mean, merge, to_floats


class HeldOut:
    """Evaluates parameters of one objective; compiled once.

    Args:
      objective: the family.
      mesh: the devices over which batches are split.
    """

    def __init__(self, objective: Objective, mesh: Mesh):
        self._mesh = mesh

        def batch_metrics(params, mutables, batch, k):
            size = batch["weight"].shape[0]
            key_B = numbered_keys(jax.random.key(0), k * size + jnp.arange(size))
            return objective.evaluate(params, mutables, batch, key_B)

        self._compiled = jax.jit(batch_metrics)

    def __call__(self, params: Any, mutables: Any, batches: Iterable[Any]) -> dict[str, float]:
        """The metrics of `objective.evaluate` over all batches.

        Each example has its own fixed random key, so that two evaluations of the same parameters
        give the same numbers.
        """
        sums: dict[str, Mean] = {}
        for k, batch in enumerate(batches):
            placed = put_batch(self._mesh, batch)
            metrics = self._compiled(params, mutables, placed, jnp.int32(k))
            sums = merge(sums, jax.device_get(metrics))
        return to_floats(sums)
