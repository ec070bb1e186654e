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
from aigc_jax.core.modality import Spec, check_spec, spec_from_json
from aigc_jax.core.state import TrainState, named_leaves
from aigc_jax.data.dataset import Dataset, draw_examples
from aigc_jax.distributed.mesh import local_mesh, make_mesh
from aigc_jax.distributed.processes import log_main
from aigc_jax.experiment import build
from aigc_jax.families.latent.first_stage import PLAYER, LatentSpaceObjective
from aigc_jax.modalities.image.spec import ImageSpec
from aigc_jax.modalities.text.spec import text_tokenizer
from aigc_jax.modalities.text.tokenizers import Tokenizer
from aigc_jax.training.checkpoint import CheckpointReader, Contents, restore_latest

WORKDIR = "workdir:"
LATENT_STATS_IMAGES = 512  # images whose latents say how latents are normalised


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


def with_first_stage(dataset: Dataset, data: Data) -> Dataset:
    """The data as a model behind the autoencoder of `data.first_stage` has them, if it is named.

    Raises:
      UserError: if that workdir holds no checkpoint, or one of other images.
    """
    workdir = data.first_stage
    if not workdir:
        return dataset
    saved, spec = restore_latest(
        workdir,
        lambda _, __, contents: (contents["config"]["config"], contents["config"]["spec"]),
    )[1]
    check_spec(workdir, spec, dataset.spec, data.source)
    return dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, stage=saved))


def like(dataset: Dataset, spec: Spec) -> Dataset:
    """The data behind the first stage of a trained run's, if that has one."""
    if getattr(spec, "stage", None) is None or not isinstance(dataset.spec, ImageSpec):
        return dataset
    return dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, stage=spec.stage))


def load_first_stage(
    workdir: str, objective: LatentSpaceObjective, params: dict[str, Any], dataset: Dataset
) -> dict[str, Any]:
    """Fresh parameters with a trained autoencoder as their frozen first stage.

    Args:
      workdir: the autoencoder's run.
      objective: what stands behind it.
      params: `{player: parameters}`.
      dataset: of which some images, drawn evenly, say how latents are normalised.
    """
    _, state, _ = restore(workdir)
    examples = draw_examples(dataset.train, LATENT_STATS_IMAGES)
    batch = {k: np.stack([example[k] for example in examples]) for k in examples[0]}
    frozen = objective.fill(state.sampling_params, state.mutables, batch)
    return {**params, PLAYER: jax.device_get(frozen)}


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
