"""Restores trained runs: for inference, frozen first stages, guidance and tokenizers."""

import dataclasses
import functools
import os
from typing import Any

import jax

from aigc_jax.core.capabilities import SupportsAutoguidance
from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import spec_from_json
from aigc_jax.core.state import TrainState
from aigc_jax.distributed.mesh import local_mesh, make_mesh
from aigc_jax.experiment import build
from aigc_jax.experiment.python_parts import Network, restore_parts
from aigc_jax.modalities.text.spec import text_tokenizer
from aigc_jax.modalities.text.tokenizers import Tokenizer
from aigc_jax.training.checkpoint import CheckpointReader, Contents, restore_latest

WORKDIR = "workdir:"


def restore(
    workdir: str,
    mesh: str = "",
    *,
    network: Network | None = None,
    optimizer: bool = True,
) -> tuple[build.Run, TrainState, int]:
    """Restores the newest checkpoint of a workdir that can be read; only the workdir is needed.

    Args:
      workdir: a trained run's folder.
      mesh: over which devices, as in a config; this process's first one if left out.
      network: that with which the run was trained, if it was given from Python and cannot be
        imported.
      optimizer: whether to restore the optimizers' state too, which inference does not need.

    Returns:
      The parts of the run, its state and its step.

    Raises:
      UserError: if it holds no checkpoint, or the mesh does not fit.
    """
    read = functools.partial(load, mesh=mesh, network=network, optimizer=optimizer)
    step, (run, state) = restore_latest(workdir, read)
    return run, state, step


def load(
    reader: CheckpointReader,
    step: int,
    contents: Contents,
    mesh: str = "",
    network: Network | None = None,
    optimizer: bool = True,
) -> tuple[build.Run, TrainState]:
    """The run and the state of one checkpoint; the arguments are those of `restore`.

    Raises:
      CorruptCheckpoint: if it does not hold what was saved.
      UserError: if its network was given from Python and is not available, or the run was trained
        with an optimizer given from Python and `optimizer` is asked for.
    """
    saved = contents["config"]
    given = saved.get("python", {})
    if optimizer and given.get("optimizer"):
        raise UserError("the run was trained with optimizer= given from Python: its state is only"
                        " restored by train(…, optimizer=…)")  # fmt: skip
    # On whatever devices there are now, and with no batch to train on.
    now = {"mesh": mesh or "data=1", "train": {**saved["config"]["train"], "parallel_mode": "jit"}}
    config = build.parse_config({**saved["config"], **now})
    devices = make_mesh(mesh) if mesh else local_mesh()
    parts = restore_parts(given, network)
    run = build.build(config, spec_from_json(saved["spec"]), devices, trains=False, parts=parts)
    state = reader.state(step, run.state_shapes(), run.shardings, contents, optimizer)
    return run, state


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
    """`SampleRequest.guidance_model` from the workdir `options.guidance_workdir`; None without one.

    Raises:
      UserError: if it holds no checkpoint, or its model cannot guide this one.
    """
    workdir = dataclasses.asdict(options).get("guidance_workdir", "")
    if not workdir or not isinstance(run.objective, SupportsAutoguidance):
        return None
    other, state, _ = restore(os.path.expanduser(workdir), optimizer=False)
    return run.objective.autoguidance(other.objective, jax.device_get(state.sampling_params))
