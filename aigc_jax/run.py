"""Train, evaluate and sample: what the command line and a notebook both call."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from aigc_jax import build
from aigc_jax.config import check_value
from aigc_jax.data import sources
from aigc_jax.data import spec as spec_lib
from aigc_jax.evaluate.judge import Judge
from aigc_jax.parallel.mesh import replicated
from aigc_jax.parallel.stop import Stop
from aigc_jax.report.samples import decode, save
from aigc_jax.sampling.generate import generate
from aigc_jax.train.checkpoint import Contents, Reader, newest
from aigc_jax.train.state import TrainState
from aigc_jax.training import Training

__all__ = ["evaluate", "restore", "sample", "save", "train"]

Recipe = Mapping[str, Any] | ml_collections.ConfigDict


def train(
    config: Recipe,
    workdir: str,
    *,
    name: str = "train",
    progress: bool = True,
    stop: Stop | None = None,
) -> dict[str, float]:
    """Trains, or goes on where the workdir's newest checkpoint stands.

    Args:
      config: a recipe, such as `configs/lm/quickstart.py` returns.
      workdir: the folder for everything that the run writes.
      name: what the progress bar says.
      progress: whether there is one.
      stop: requests to stop; `aigc train` makes signals into such requests.

    Returns:
      The last evaluation, or the last training record if the recipe evaluates never.

    Raises:
      UserError: for a wrong config, missing data, or a workdir of another config or in use; its
        subclasses in `errors.py` for a run that cannot go on.
    """
    return Training(build.parse_config(config), workdir, stop or Stop()).run(name, progress)


def restore(workdir: str) -> tuple[build.Run, TrainState, int]:
    """The run and the newest state of a workdir that is whole; only the workdir is needed.

    Raises:
      UserError: if it holds no checkpoint.
    """
    step, (run, state) = newest(workdir, load)
    return run, state, step


def load(reader: Reader, step: int, contents: Contents) -> tuple[build.Run, TrainState]:
    """The run and the state of one checkpoint; Damaged if it is not whole."""
    saved = contents["config"]
    # On whatever devices there are now, and with no batch to train on.
    one = {"mesh": "data=1", "train": {**saved["config"]["train"], "accumulate": 1}}
    config = build.parse_config({**saved["config"], **one})
    run = build.build(config, spec_lib.from_json(saved["spec"]))
    return run, reader.state(step, run.state_shapes(), replicated(run.mesh), contents)


def evaluate(workdir: str, data_dir: str = "") -> dict[str, float]:
    """The held-out metrics of a workdir's newest checkpoint, `loss` among them.

    Args:
      workdir: a trained run's folder.
      data_dir: where its prepared data set lies now; where it lay in training if left out.

    Raises:
      UserError: if there is no checkpoint, or its data cannot be found.
    """
    run, state, step = restore(workdir)
    data = run.config.data
    data = dataclasses.replace(data, data_dir=data_dir) if data_dir else data
    dataset = sources.load(data)
    spec_lib.check_spec(workdir, run.spec.to_json(), dataset.spec, data.source)
    return {"step": step, **Judge(run, dataset)(state)}


def sample(
    workdir: str, num: int | None = None, seed: int = 0, **options: Any
) -> np.ndarray | list[str]:
    """Samples from a workdir's newest checkpoint: uint8 images (N, H, W, C), or texts.

    Args:
      workdir: a trained run's folder.
      num: how many; the recipe's `sample.num` if left out.
      seed: of the samples.
      **options: fields of the family's `sample` section, such as `temperature` or `guidance`.

    Raises:
      UserError: if there is no checkpoint, or the family has no such option.
    """
    check_value(int, seed, "seed")
    run, state, _ = restore(workdir)
    if num is not None:
        options["num"] = num
    chosen = build.sample_options(run.config, options)
    samples = generate(run.objective, state.sampling_params, chosen, chosen.num, seed)
    return decode(run, samples, chosen)
