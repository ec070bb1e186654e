"""Arrays that lie on many devices, brought to where one process can use them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.state import TrainState


def gather_to_host(tree: Any) -> Any:
    """Every array whole on the host of every process. All processes call it together."""
    return jax.tree.map(lambda x: np.asarray(_whole(x)), tree)


def sampling_state(state: TrainState) -> TrainState:
    """What evaluation and sampling read of a state, where this process can use it alone.

    Arrays that every device has come to the host, to be used on one device; so do those that are
    spread over processes, which call it together. What the devices of this process share out stays
    with them: it may be more than one of them holds.
    """

    def near(x: Any) -> Any:
        if isinstance(x, jax.Array) and x.is_fully_addressable and not x.is_fully_replicated:
            return x
        return np.asarray(_whole(x))

    params, mutables = jax.tree.map(near, (state.sampling_params, state.mutables))
    return state.replace(params=params, mutables=mutables, opt_state={}, ema={}, power_ema={})


def _whole(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    whole = NamedSharding(x.sharding.mesh, P())
    return jax.jit(lambda x: x, out_shardings=whole)(x)
