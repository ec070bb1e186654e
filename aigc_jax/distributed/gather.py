"""Gathers sharded arrays to one process's host or devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.state import TrainState


def gather_to_host(tree: Any) -> Any:
    """Gathers every array to the host of every process. All processes call it together."""
    return jax.tree.map(lambda x: np.asarray(_replicate(x)), tree)


def sampling_state(state: TrainState) -> TrainState:
    """Returns a state for evaluation and sampling by each process independently.

    Replicated arrays, and arrays sharded over several processes, are gathered to the host; all
    processes call it together. Arrays sharded over the devices of this process stay sharded: they
    may exceed the memory of one device.
    """

    def near(x: Any) -> Any:
        if isinstance(x, jax.Array) and x.is_fully_addressable and not x.is_fully_replicated:
            return x
        return np.asarray(_replicate(x))

    params, mutables = jax.tree.map(near, (state.sampling_params, state.mutables))
    return state.replace(params=params, mutables=mutables, opt_state={}, ema={}, power_ema={})


def _replicate(x: Any) -> Any:
    """Replicates an array that is sharded over several processes; returns others unchanged."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    assert isinstance(x.sharding, NamedSharding)
    return jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)
