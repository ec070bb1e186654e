"""Restores trained runs: for inference, frozen first stages, guidance and tokenizers."""

import dataclasses
import functools
import os
from typing import Any

import jax

from aigc_jax.core.capabilities import SupportsAutoguidance
from aigc_jax.core.config import Data, Sample
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
    """Restores the newest intact checkpoint of a workdir; needs only the workdir.

    Args:
      workdir: a trained run's folder.
      mesh: mesh, as in a config; this process's first device by default.
      network: the network of the run, if it was passed from Python and cannot be imported.
      optimizer: whether to restore the optimizers' state too, which inference does not need.

    Returns:
      The parts of the run, its state and its step.

    Raises:
      UserError: if the workdir holds no checkpoint, or the mesh does not suit it.
    """
    read = functools.partial(load_checkpoint, mesh=mesh, network=network, optimizer=optimizer)
    step, (run, state) = restore_latest(workdir, read)
    return run, state, step


def load_checkpoint(
    reader: CheckpointReader,
    step: int,
    contents: Contents,
    mesh: str = "",
    network: Network | None = None,
    optimizer: bool = True,
) -> tuple[build.Run, TrainState]:
    """Loads the run and the state of one checkpoint; arguments as for `restore`.

    Raises:
      CorruptCheckpoint: if it is damaged.
      UserError: if its network was passed from Python and is not available, or its optimizer was
        passed from Python and `optimizer` is True.
    """
    saved = contents["config"]
    given = saved.get("python", {})
    if optimizer and given.get("optimizer"):
        raise UserError("the run was trained with optimizer= passed from Python: restore its state"
                        " by train(…, optimizer=…)")  # fmt: skip
    # The present devices may differ from those of training, and there is no training batch.
    now = {"mesh": mesh or "data=1", "train": {**saved["config"]["train"], "parallel_mode": "jit"}}
    config = build.parse_config({**saved["config"], **now})
    devices = make_mesh(mesh) if mesh else local_mesh()
    parts = restore_parts(given, network)
    run = build.build(config, spec_from_json(saved["spec"]), devices, trains=False, parts=parts)
    state = reader.state(step, run.state_shapes(), run.shardings, contents, optimizer)
    return run, state


def tokenizer_of(data: Data) -> Tokenizer | None:
    """Returns the tokenizer of DIR for `data.tokenizer=workdir:DIR`; otherwise None.

    Raises:
      UserError: if DIR holds no checkpoint of a text model.
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
            f"data.tokenizer={data.tokenizer}: that run has no tokenizer, because its modality is"
            f" '{spec.modality}': set it to the workdir of a text model"
        )
    return tokenizer


def guidance_model_of(run: build.Run, options: Sample) -> Any:
    """Loads `SampleRequest.guidance_model` from `options.guidance_workdir`; None without one.

    Raises:
      UserError: if the workdir holds no checkpoint, or its model cannot guide this one.
    """
    workdir = dataclasses.asdict(options).get("guidance_workdir", "")
    if not workdir or not isinstance(run.objective, SupportsAutoguidance):
        return None
    other, state, _ = restore(os.path.expanduser(workdir), optimizer=False)
    return run.objective.autoguidance(other.objective, jax.device_get(state.sampling_params))
