"""Trained workdirs as something to go on from: their runs, parameters and tokenizers."""

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from aigc_jax.core.capabilities import SupportsAutoguidance, SupportsMergedAdapters
from aigc_jax.core.config import Config, Data, differences
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import marked
from aigc_jax.core.modality import spec_from_json
from aigc_jax.core.state import TrainState, named_leaves
from aigc_jax.distributed.main_process import log_main
from aigc_jax.distributed.mesh import local_mesh, make_mesh
from aigc_jax.experiment import build
from aigc_jax.modalities.text.spec import text_tokenizer
from aigc_jax.modalities.text.tokenizers import Tokenizer
from aigc_jax.training.checkpoint import CheckpointReader, Contents, restore_latest

WORKDIR = "workdir:"


def restore(workdir: str, mesh: str = "") -> tuple[build.Run, TrainState, int]:
    """The run and the newest state of a workdir that is whole; only the workdir is needed.

    Args:
      workdir: a trained run's folder.
      mesh: over which devices, as in a config; this process's first one if left out.

    Raises:
      UserError: if it holds no checkpoint, or the mesh does not fit.
    """
    step, (run, state) = restore_latest(workdir, functools.partial(load, mesh=mesh))
    return run, state, step


def load(
    reader: CheckpointReader, step: int, contents: Contents, mesh: str = ""
) -> tuple[build.Run, TrainState]:
    """The run and the state of one checkpoint; Damaged if it is not whole."""
    saved = contents["config"]
    # On whatever devices there are now, and with no batch to train on.
    now = {"mesh": mesh or "data=1", "train": {**saved["config"]["train"], "parallel_mode": "jit"}}
    config = build.parse_config({**saved["config"], **now})
    devices = make_mesh(mesh) if mesh else local_mesh()
    run = build.build(config, spec_from_json(saved["spec"]), devices, trains=False)
    return run, reader.state(step, run.state_shapes(), run.shardings, contents)


def tokenizer_of(data: Data) -> Tokenizer | None:
    """The tokenizer of the workdir that `data.tokenizer=workdir:DIR` names; otherwise none.

    Raises:
      UserError: if it holds no checkpoint, or not one of a text model.
    """
    if not data.tokenizer.startswith(WORKDIR):
        return None
    workdir = data.tokenizer.removeprefix(WORKDIR)
    _, spec = restore_latest(
        workdir, lambda _, __, contents: spec_from_json(contents["config"]["spec"])
    )
    tokenizer = text_tokenizer(spec)
    if tokenizer is None:
        raise UserError(
            f"data.tokenizer={data.tokenizer}: the model of that run has no tokenizer, its data are"
            f" of the modality '{spec.modality}': name the workdir of a text model"
        )
    return tokenizer


def guidance_model_of(run: build.Run, options: Any) -> Any:
    """`SampleRequest.guidance_model` from the workdir `options.guide`; None without one.

    Raises:
      UserError: if it holds no checkpoint, or its model cannot guide this one.
    """
    workdir = dataclasses.asdict(options).get("guide", "")
    if not workdir or not isinstance(run.objective, SupportsAutoguidance):
        return None
    other, state, _ = restore(os.path.expanduser(workdir))
    return run.objective.autoguidance(other.objective, jax.device_get(state.sampling_params))


def warm_start(
    workdir: str, params: dict[str, Any], config: Config | None = None
) -> dict[str, Any]:
    """Fresh parameters with those of a trained run in their places, where it has them.

    Parameters go by their names; adapters of the trained run are merged into its model, and a
    frozen `base` of the new run gets what was trained. What the trained run does not have, such as
    the head of a new task, stays fresh, which is said in one line; so are settings of the model
    that differ, with which the same parameters would mean something else.

    Args:
      workdir: the trained run.
      params: `{player: parameters}` on the host or on devices.
      config: of the new run.

    Raises:
      UserError: if it has nothing of the kind, or arrays of other sizes.
    """
    run, state, _ = restore(workdir)
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
                f"train.init_from={workdir}: {name} is of shape {np.shape(old)} there and"
                f" {np.shape(leaf)} here: give the model the same sizes"
            )
        taken.append(name)
        return np.asarray(old, leaf.dtype)

    placed = jax.tree_util.tree_map_with_path(place, params)
    if not taken:
        raise UserError(
            f"train.init_from={workdir} has no parameter of this model: it is of another kind"
        )
    more = f" ({', '.join(fresh[:4])}{' …' if len(fresh) > 4 else ''})" if fresh else ""
    log_main(f"begun with {len(taken)} arrays of {workdir}; {len(fresh)} are fresh{more}")
    others: list[str] = []
    if config is not None:
        compatible = marked(type(config.model), "init_compatible", "model")
        models = ({"model": c.raw["model"]} for c in (run.config, config))
        others = differences(*models, compatible)
    if others:
        log_main(f"the models differ: {', '.join(others)}")
    return placed
