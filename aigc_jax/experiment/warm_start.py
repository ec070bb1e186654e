"""Warm starts: initial parameters from a trained run."""

from typing import Any

import jax
import numpy as np

from aigc_jax.core.capabilities import SupportsMergedAdapters
from aigc_jax.core.config import Config, differences
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import marked
from aigc_jax.core.state import named_leaves
from aigc_jax.distributed.main_process import log_main
from aigc_jax.experiment.restore import restore


def warm_start(
    workdir: str, params: dict[str, Any], config: Config | None = None
) -> dict[str, Any]:
    """Returns initial parameters, replaced by those of a trained run where it has them.

    Parameters are matched by name. Adapters of the trained run are merged into its model, and a
    frozen `base` of the new run gets the trained model. Parameters missing in the trained run,
    such as the head of a new task, keep their initial values. They are logged, as are differences
    between the model configs that change the meaning of parameters.

    Args:
      workdir: the trained run.
      params: `{player: parameters}` on the host or on devices.
      config: config of the new run.

    Raises:
      UserError: if the trained run has no parameter of this model, or arrays of other shapes.
    """
    run, state, _ = restore(workdir, optimizer=False)
    trained = state.sampling_params
    if isinstance(run.objective, SupportsMergedAdapters):
        trained = run.objective.merge_adapters(trained)
    known = dict(named_leaves(jax.device_get(trained)))
    taken, fresh = [], []

    def place(path: tuple, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        player, _, rest = name.partition("/")
        old = known.get(f"model/{rest}" if player == "base" else name)
        if old is None:
            fresh.append(name)
            return leaf
        if np.shape(old) != np.shape(leaf):
            raise UserError(
                f"train.init_from={workdir}: {name} has the shape {np.shape(old)} there and"
                f" {np.shape(leaf)} here: use the same model sizes"
            )
        taken.append(name)
        return np.asarray(old, leaf.dtype)

    placed = jax.tree_util.tree_map_with_path(place, params)
    if not taken:
        raise UserError(
            f"train.init_from={workdir} has no parameter of this model: choose another run"
        )
    more = f" ({', '.join(fresh[:4])}{' …' if len(fresh) > 4 else ''})" if fresh else ""
    log_main(f"warm start: {len(taken)} arrays from {workdir}, {len(fresh)} initialised{more}")
    others: list[str] = []
    if config is not None:
        compatible = marked(type(config.model), "init_compatible", "model")
        old, new = ({"model": c.raw["model"]} for c in (run.config, config))
        others = differences(old, new, compatible)
    if others:
        log_main(f"the models differ: {', '.join(others)}")
    return placed
