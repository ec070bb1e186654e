"""A family's own metrics over held-out data."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from aigc_jax.core.bootstrap import bootstrap
from aigc_jax.core.capabilities import SupportsPredictions, SupportsSummary
from aigc_jax.core.metrics import Mean, Metrics, merge, to_floats
from aigc_jax.core.objective import Objective
from aigc_jax.distributed.logical_axes import with_mesh
from aigc_jax.distributed.mesh import put_batch, replicated
from aigc_jax.ops.random import numbered_keys
from aigc_jax.training.step import PREPARE


class HeldOut:
    """Evaluates parameters of one objective; compiled once.

    Args:
      objective: the family.
      mesh: the devices over which batches are split.
      measure: what to measure, called as `objective.evaluate` is, which it is if left out.
    """

    def __init__(
        self, objective: Objective, mesh: Mesh, measure: Callable[..., Metrics] | None = None
    ):
        self._mesh = mesh
        self._objective = objective

        def batch_metrics(params, mutables, batch, k):
            size = batch["weight"].shape[0]
            number_B = k * size + jnp.arange(size)
            key_B = numbered_keys(jax.random.key(0), number_B)
            own_B = numbered_keys(jax.random.key(PREPARE), number_B)
            batch = objective.prepare(params, mutables, batch, own_B, jnp.int32(0))
            predictions = {}
            if measure is None and isinstance(objective, SupportsPredictions):
                predictions = objective.predict(params, mutables, batch)
            metrics = (measure or objective.evaluate)(params, mutables, batch, key_B)
            return metrics, predictions

        # Whole in every process, whatever share of the batch it has.
        self._compiled = jax.jit(with_mesh(mesh, batch_metrics), out_shardings=replicated(mesh))

    def __call__(
        self, params: Any, mutables: Any, batches: Iterable[Any]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The metrics of `objective.evaluate` over all batches, and `objective.predict`'s arrays.

        Each example has its own fixed random key, so that two evaluations of the same parameters
        give the same numbers. A metric with sums per example has `…_low` and `…_high` beside it,
        the ends of its 95% interval. What only all examples together show, such as which codes are
        used at all, is found by `objective.summarize` from the arrays.
        """
        sums: dict[str, Mean] = {}
        parts: dict[str, list[Mean]] = {}
        predictions: dict[str, list[np.ndarray]] = {}
        for k, batch in enumerate(batches):
            placed = put_batch(self._mesh, batch)
            outputs = jax.device_get(self._compiled(params, mutables, placed, jnp.int32(k)))
            metrics, predicted = outputs
            for name, mean in metrics.items():
                if np.ndim(mean.total):
                    parts.setdefault(name, []).append(mean)
            sums = merge(sums, {k: m for k, m in metrics.items() if not np.ndim(m.total)})
            for name, rows in predicted.items():
                predictions.setdefault(name, []).append(rows)
        found = to_floats(sums)
        for name, means in parts.items():
            totals = np.concatenate([m.total for m in means]).astype(np.float64)
            weights = np.concatenate([m.weight for m in means]).astype(np.float64)
            found[name] = float(totals.sum() / (weights.sum() or 1.0))
            found[f"{name}_low"], found[f"{name}_high"] = bootstrap(totals, weights)
        arrays = {name: np.concatenate(rows) for name, rows in predictions.items()}
        if isinstance(self._objective, SupportsSummary) and arrays:
            found |= self._objective.summarize(arrays)
        return found, arrays
