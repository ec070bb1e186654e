"""Gathers sharded arrays to where one process can use them."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.state import TrainState


def gather_to_host(tree: Any) -> Any:
    """Returns every array whole, on the host of every process; a collective operation."""
    return jax.tree.map(lambda x: np.asarray(_whole(x)), tree)


def sampling_state(state: TrainState) -> TrainState:
    """Returns the parameters and mutables for sampling, usable by this process alone.

    Replicated arrays are copied to the host, to be used on one device; arrays that are sharded over
    processes are gathered there, a collective operation. Arrays that are sharded over the devices
    of this process stay sharded, since they may not fit one device.
    """

    def gather(x: Any) -> Any:
        if isinstance(x, jax.Array) and x.is_fully_addressable and not x.is_fully_replicated:
            return x
        return np.asarray(_whole(x))

    params, mutables = jax.tree.map(gather, (state.sampling_params, state.mutables))
    return dataclasses.replace(
        state, params=params, mutables=mutables, opt_state={}, ema={}, power_ema={}
    )


def _whole(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    assert isinstance(x.sharding, NamedSharding)
    return jax.jit(lambda x: x, out_shardings=NamedSharding(x.sharding.mesh, P()))(x)
