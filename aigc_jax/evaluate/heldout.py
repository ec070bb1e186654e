"""A family's own metrics over held-out data."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from aigc_jax.objectives.base import Objective
from aigc_jax.ops.random import numbered_keys
from aigc_jax.parallel.mesh import put_batch
from aigc_jax.train.metrics import Mean, merge, to_floats


def evaluate_heldout(
    objective: Objective, params: Any, mutables: Any, batches: Iterable[Any], mesh: Mesh
) -> dict[str, float]:
    """The metrics of `objective.evaluate` over all batches.

    Each example has its own fixed random key, so that two evaluations of the same parameters give
    the same numbers.
    """
    compiled = _compiled(objective)
    sums: dict[str, Mean] = {}
    for k, batch in enumerate(batches):
        metrics = compiled(params, mutables, put_batch(mesh, batch), jnp.int32(k))
        sums = merge(sums, jax.device_get(metrics))
    return to_floats(sums)


@lru_cache(maxsize=8)
def _compiled(objective: Objective) -> Any:
    def batch_metrics(params, mutables, batch, k):
        size = batch["weight"].shape[0]
        key_B = numbered_keys(jax.random.key(0), k * size + jnp.arange(size))
        return objective.evaluate(params, mutables, batch, key_B)

    return jax.jit(batch_metrics)
