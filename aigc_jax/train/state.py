"""The state of a run: arrays only, no functions inside."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from aigc_jax.objectives.base import Objective
from aigc_jax.train import ema as ema_lib
from aigc_jax.train.optim import Optimizers

INIT = 0xFFFFFFFF  # folded into the run's key for initialisation: no step has this number
Params = dict[str, Any]  # {player: that player's parameters}


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, steps taken (skipped ones included).
      params: `{player: parameters}`.
      opt_state: `{player: Optax state}`.
      ema: `{player: averaged parameters}`, without frozen players; empty if the run keeps no
        average.
      profiles: `{width: {player: average with a power-function profile of that width}}`.
      mutables: `{player: what a loss updates besides parameters}`.
      rng: the data of the run's only random key; it never changes, steps fold their number in.
      skipped: int32 scalar, steps whose update was left out because something was not finite.
    """

    step: jax.Array
    params: Params
    opt_state: dict[str, optax.OptState]
    ema: Params
    profiles: dict[str, Params]
    mutables: dict[str, Any]
    rng: jax.Array
    skipped: jax.Array

    @property
    def sampling_params(self) -> Params:
        """The parameters to evaluate and to sample with: the average where there is one."""
        first = next(iter(self.profiles.values()), {})
        return {**self.params, **first, **self.ema}


def init_state(
    objective: Objective,
    optimizers: Optimizers,
    batch: Any,
    seed: jax.Array,
    *,
    ema: bool,
    profiles: Sequence[float] = (),
) -> TrainState:
    """A fresh state; pure, so that it can be shaped by `eval_shape` and compiled.

    Args:
      objective: the game.
      optimizers: one per player that moves.
      batch: an example batch; only its shapes matter.
      seed: int32 scalar.
      ema: whether the run averages its parameters.
      profiles: widths of the power-function averages that it keeps.
    """
    key = jax.random.key(seed)
    params, mutables = objective.init(jax.random.fold_in(key, INIT), batch)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state={player: o.init(params[player]) for player, o in optimizers.items()},
        ema=copied({p: params[p] for p in optimizers}) if ema else {},
        profiles={ema_lib.name(w): copied({p: params[p] for p in optimizers}) for w in profiles},
        mutables=mutables,
        rng=jax.random.key_data(key),
        skipped=jnp.int32(0),
    )


def copied(tree: Any) -> Any:
    """The step donates its state, and one buffer cannot be given away twice."""
    return jax.tree.map(jnp.copy, tree)


def named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, as in "model/layers/mlp/in/kernel"."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
