"""A fresh training state."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.objective import Objective
from aigc_jax.core.state import TrainState, copy_buffers
from aigc_jax.training import ema as ema_lib
from aigc_jax.training.optimizers import Optimizers

INIT_FOLD = 0xFFFFFFFF  # folded into the run's key for initialisation: no step has this number


def init_state(
    objective: Objective,
    optimizers: Optimizers,
    batch: Any,
    seed: jax.Array | int = 0,
    *,
    ema: bool = False,
    power_ema: Sequence[float] = (),
) -> TrainState:
    """Returns a fresh state; pure, so that it can be compiled, or its shapes found by `eval_shape`.

    Args:
      objective: the game.
      optimizers: one per player that moves.
      batch: an example batch; only its shapes matter.
      seed: int32 scalar; of the parameters and of everything random in the run.
      ema: whether the run averages its parameters.
      power_ema: widths of the power-function averages that it keeps.
    """
    key = jax.random.key(seed)
    params, mutables = nn.unbox(objective.init(jax.random.fold_in(key, INIT_FOLD), batch))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state={player: o.init(params[player]) for player, o in optimizers.items()},
        ema=copy_buffers({p: params[p] for p in optimizers}) if ema else {},
        power_ema={
            ema_lib.sigma_rel_key(w): copy_buffers({p: params[p] for p in optimizers})
            for w in power_ema
        },
        mutables=mutables,
        rng=jax.random.key_data(key),
        skipped=jnp.int32(0),
    )
