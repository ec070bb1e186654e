"""Train, evaluate and sample: what the command line and a notebook both call."""

import dataclasses
import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from aigc_jax import build
from aigc_jax.config import Data, check_value
from aigc_jax.data import sources
from aigc_jax.data import spec as spec_lib
from aigc_jax.data.pipeline import TrainIterator, eval_batches, num_batches
from aigc_jax.data.sources import Dataset
from aigc_jax.data.spec import Spec
from aigc_jax.errors import UserError
from aigc_jax.evaluate import text as text_eval
from aigc_jax.evaluate.fidelity import Fidelity
from aigc_jax.evaluate.heldout import HeldOut
from aigc_jax.parallel.mesh import replicated
from aigc_jax.report.grid import save_images, save_texts
from aigc_jax.sampling.generate import check_sampling, generate
from aigc_jax.train import log
from aigc_jax.train.checkpoint import Checkpoints
from aigc_jax.train.loop import Every, fit
from aigc_jax.train.state import TrainState
from aigc_jax.workdir import check_same, check_workdir, open_workdir, write_config

Recipe = Mapping[str, Any] | ml_collections.ConfigDict


class Judge:
    """Evaluates a run's states: held-out metrics, and references that are computed once."""

    def __init__(self, run: build.Run, dataset: Dataset):
        self._run, self._dataset = run, dataset
        self._held_out = HeldOut(run.objective, run.mesh)
        self._references: dict[str, float] = {}

    def __call__(self, state: TrainState) -> dict[str, float]:
        run, c = self._run, self._run.config
        which = self._dataset.validation, c.eval.batch_size, c.eval.batches
        total = num_batches(*which)
        bar = tqdm(eval_batches(*which), "evaluating", total, leave=False, unit="batch", delay=5)
        metrics = self._held_out(state.sampling_params, state.mutables, bar)
        if jax.process_index() == 0:
            metrics |= {"text": self._text, "image": self._image}[run.spec.modality](state)
        return metrics

    def _text(self, state: TrainState) -> dict[str, float]:
        if self._run.config.eval.batches:
            return {}  # a part of the held-out text has no references for the whole of it
        if not self._references:
            texts = self._dataset.texts
            self._references = text_eval.baselines(texts["train"], texts["validation"])
        return self._references

    def _image(self, state: TrainState) -> dict[str, float]:
        c = self._run.config
        if not c.eval.fidelity:
            return {}
        # Runs on the same images share their judge, whatever their batches.
        images_only = dataclasses.replace(c.data, batch_size=1, threads=0)
        judge = fidelity_of(images_only, c.eval.samples)
        params = jax.device_get(state.sampling_params)
        images = generate(self._run.objective, params, c.sample, judge.num, label_N=judge.label_N)
        return judge.report(images)


@functools.lru_cache(maxsize=2)
def fidelity_of(data: Data, samples: int) -> Fidelity:
    """The judge of a data set's images, trained once per process."""
    return Fidelity(sources.load(data), samples)


def train(
    config: Recipe, workdir: str, *, name: str = "train", progress: bool = True
) -> dict[str, float]:
    """Trains, or goes on where the workdir's newest checkpoint stands.

    Args:
      config: a recipe, such as `configs/lm/quickstart.py` returns.
      workdir: the folder for everything that the run writes.
      name: what the progress bar says.
      progress: whether there is one.

    Returns:
      The last evaluation, or the last training record if the recipe evaluates never.

    Raises:
      UserError: for a wrong config, missing data, or a workdir of another config.
    """
    c = build.parse_config(config)
    workdir = os.path.abspath(os.path.expanduser(workdir))
    check_workdir(workdir, c.raw)
    dataset = sources.load(c.data)
    run = build.build(c, dataset.spec)
    shapes = run.state_shapes()  # sizes that do not fit are reported before anything is written
    check_sampling(run.objective, shapes.sampling_params, c.sample)
    open_workdir(workdir)
    checkpoints = Checkpoints(workdir, c.checkpoint.keep, create=True)
    batches = TrainIterator(dataset.train, c.data.batch_size, c.seed, c.data.threads)
    start, state = begin(run, shapes, checkpoints, batches, workdir)
    judge = Judge(run, dataset)
    main = jax.process_index() == 0
    if main:
        write_config(workdir, c.raw)
    records = log.Records(workdir, start, run.schedules) if main else log.NoRecords()
    bar = log.progress(c.train.steps, start, name) if progress and main else None
    try:
        state = fit(
            run.step,
            run.step.put_state(state),
            batches,
            start=start,
            end=c.train.steps,
            hooks=make_hooks(run, judge, records, checkpoints, batches, workdir),
            flush_at=lambda step: step % c.train.log_every == 0,
            write=records.write_train,
            batch_size=c.data.batch_size,
            progress=bar,
        )
        checkpoints.wait()
    finally:
        if bar is not None:
            bar.close()
        checkpoints.close()
        records.close()
    if start >= c.train.steps:
        print(f"aigc: {workdir} already has all {c.train.steps} steps", file=sys.stderr)
    if int(jax.device_get(state.skipped)):
        print(f"aigc: {int(state.skipped)} steps were skipped: not finite", file=sys.stderr)
    return records.last


def begin(
    run: build.Run,
    shapes: TrainState,
    checkpoints: Checkpoints,
    batches: TrainIterator,
    workdir: str,
) -> tuple[int, TrainState]:
    """The step to go on from and its state: the newest checkpoint's, or fresh ones.

    Raises:
      UserError: if the checkpoint is of another config or other data.
    """
    start = checkpoints.latest() or 0
    if not start:
        init = jax.jit(run.init, out_shardings=replicated(run.mesh))
        return 0, init(jnp.int32(run.config.seed))
    saved = checkpoints.config(start)
    check_same(workdir, saved["config"], run.config.raw)
    check_spec(workdir, saved["spec"], run.spec, run.config.data)
    state, position = checkpoints.restore(start, shapes, replicated(run.mesh))
    batches.seek(position)
    print(f"aigc: going on after step {start}", file=sys.stderr)
    return start, state


def make_hooks(
    run: build.Run,
    judge: Judge,
    records: log.Records | log.NoRecords,
    checkpoints: Checkpoints,
    batches: TrainIterator,
    workdir: str,
) -> tuple[Every, ...]:
    """What is done beside training, each when the recipe says so."""
    c = run.config

    def evaluate_hook(step: int, state: TrainState) -> None:
        records.write({"step": step, "kind": "eval", **judge(state)})

    def sample_hook(step: int, state: TrainState) -> None:
        if jax.process_index() == 0:
            save_samples(run, state, os.path.join(workdir, "samples", f"step_{step:07d}"))

    def save_hook(step: int, state: TrainState) -> None:
        records.flush()
        contents = {"config": c.raw, "spec": run.spec.to_json()}
        checkpoints.save(step, state, batches.position(), contents)

    return (
        Every(c.eval.every, evaluate_hook, last=c.eval.every > 0),
        Every(c.checkpoint.every, save_hook, last=True),
        Every(c.sample.every, sample_hook, last=c.sample.every > 0),
    )


def restore(workdir: str) -> tuple[build.Run, TrainState, int]:
    """The run and the newest state of a workdir; only the workdir is needed.

    Raises:
      UserError: if it holds no checkpoint.
    """
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest()
    if step is None:
        raise UserError(f"{workdir} holds no complete checkpoint: train there first")
    contents = checkpoints.config(step)
    # On whatever devices there are now, and with no batch to train on.
    one = {"mesh": "data=1", "train": {**contents["config"]["train"], "accumulate": 1}}
    config = build.parse_config({**contents["config"], **one})
    run = build.build(config, spec_lib.from_json(contents["spec"]))
    state, _ = checkpoints.restore(step, run.state_shapes(), replicated(run.mesh))
    checkpoints.close()
    return run, state, step


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
    check_spec(workdir, run.spec.to_json(), dataset.spec, data)
    return {"step": step, **Judge(run, dataset)(state)}


def check_spec(workdir: str, old: dict[str, Any], new: Spec, data: Data) -> None:
    """Raises UserError if data are not of the kind that a workdir was trained on."""
    if old != new.to_json():
        raise UserError(
            f"data.source='{data.source}' is not what {workdir} was trained on: its shapes, classes"
            " or vocabulary have changed"
        )


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


def decode(run: build.Run, samples: np.ndarray, options: Any) -> np.ndarray | list[str]:
    """Images as they are; tokens as text, with the prompt before them."""
    if run.spec.modality == "image":
        return samples
    return [options.prompt + run.spec.tokenizer.decode(row) for row in samples]


def save(samples: np.ndarray | list[str], path: str) -> str:
    """A PNG grid of images, or a text file; returns its path. The suffix is added if missing."""
    text = isinstance(samples, list)
    suffix = ".txt" if text else ".png"
    path = path if os.path.splitext(path)[1] else path + suffix
    try:
        return save_texts(samples, path) if text else save_images(samples, path)
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror}") from e


def save_samples(run: build.Run, state: TrainState, path: str) -> str:
    """Draws and saves what the recipe's `sample` section asks for."""
    options = run.config.sample
    params = jax.device_get(state.sampling_params)
    samples = generate(run.objective, params, options, options.num)
    return save(decode(run, samples, options), path)
