"""Initialises the training state."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.objective import Objective
from aigc_jax.core.state import TrainState, copy_buffers
from aigc_jax.training import ema as ema_lib
from aigc_jax.training.optimizers import Optimizers

INIT_FOLD = 0xFFFFFFFF  # folded into the run's key for initialisation; no step has this number


def init_state(
    objective: Objective,
    optimizers: Optimizers,
    batch: Any,
    seed: jax.Array | int = 0,
    *,
    ema: bool = False,
    power_ema: Sequence[float] = (),
) -> TrainState:
    """Returns an initial state; pure, hence usable under `jit` and `eval_shape`.

    Args:
      objective: the game.
      optimizers: one per trained player.
      batch: an example batch; only its shapes matter.
      seed: int32 scalar, random seed of the run.
      ema: whether to keep an exponential average.
      power_ema: widths σ_rel of the power-function averages to keep.
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
