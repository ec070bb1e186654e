"""The state of a run: arrays only, no functions."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Params = dict[str, Any]  # {player: that player's parameters}


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, steps taken (skipped ones included).
      params: `{player: parameters}`.
      opt_state: `{player: Optax state}`.
      ema: `{player: averaged parameters}`, without frozen players; empty if the run keeps no
        average.
      power_ema: `{width: {player: average with a power-function profile of that width}}`.
      mutables: `{player: non-trainable state that a loss updates}`.
      rng: data of the run's random key, constant over the run; steps fold their number into it.
      skipped: int32 scalar, steps whose update was skipped because something was not finite.
    """

    step: jax.Array
    params: Params
    opt_state: dict[str, optax.OptState]
    ema: Params
    power_ema: dict[str, Params]
    mutables: dict[str, Any]
    rng: jax.Array
    skipped: jax.Array

    @property
    def sampling_params(self) -> Params:
        """Returns the parameters for evaluation and sampling: the average where there is one."""
        first = next(iter(self.power_ema.values()), {})
        return {**self.params, **first, **self.ema}


def copy_buffers(tree: Any) -> Any:
    """Copies every array: the step donates its state, and a buffer can be donated only once."""
    return jax.tree.map(jnp.copy, tree)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of a tree with their paths, such as "model/layers/mlp/in/kernel"."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
