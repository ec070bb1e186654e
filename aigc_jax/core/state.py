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
      mutables: `{player: what a loss updates besides parameters}`.
      rng: the data of the run's only random key; it never changes, steps fold their number in.
      skipped: int32 scalar, steps whose update was left out because something was not finite.
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
        """The parameters to evaluate and to sample with: the average where there is one."""
        first = next(iter(self.power_ema.values()), {})
        return {**self.params, **first, **self.ema}


def copy_buffers(tree: Any) -> Any:
    """Copies every array: the step donates its state, and a buffer can be donated only once."""
    return jax.tree.map(jnp.copy, tree)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, as in "model/layers/mlp/in/kernel"."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
