"""Evaluating a run's states: held-out metrics, and references that are computed once."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from aigc_jax.core.capabilities import (
    SupportsLikelihood,
    SupportsReconstruction,
    SupportsTextGeneration,
)
from aigc_jax.core.config import Eval
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import LABEL, LEVELS, TAGS, TOKENS, task_of
from aigc_jax.core.state import TrainState
from aigc_jax.data.fixed_batches import eval_batches, num_batches
from aigc_jax.distributed.gather import sampling_state
from aigc_jax.distributed.main_process import is_main_process
from aigc_jax.distributed.mesh import BATCH, axis_size, process_shard
from aigc_jax.evaluation.heldout import HeldOut
from aigc_jax.experiment.build import Run
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.experiment.restore import guidance_model_of
from aigc_jax.modalities.image.metrics.feature_networks import check_features
from aigc_jax.modalities.image.metrics.fidelity import Fidelity, check_enough, fidelity_of
from aigc_jax.modalities.image.metrics.mode_coverage import mode_report
from aigc_jax.modalities.image.metrics.reconstruction import reconstructed
from aigc_jax.modalities.sources import Dataset
from aigc_jax.modalities.text.metrics import compression_baselines as text_eval
from aigc_jax.modalities.text.metrics.classification_report import entity_report, is_bio, report
from aigc_jax.modalities.text.metrics.text_generation import score_answers

Metrics = dict[str, Any]


def check_judging(dataset: Dataset, terms: Eval) -> None:
    """Raises UserError, before anything is trained, if there are too few images to be judged by."""
    if terms.every and terms.fidelity and dataset.spec.modality == "image":
        sizes = len(dataset.train), len(dataset.validation)
        check_enough(*sizes, terms.samples or sizes[0])


class Evaluator:
    """Evaluates a run's states.

    Args:
      run: its parts.
      dataset: its data.
      tick: called after each batch.
      source: what the data are called, if they are not the run's own.
      folder: where to show samples beside their nearest training images; "": nowhere.

    Raises:
      UserError: if texts are to be written that the family does not write, or there is no such
        feature network.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        tick: Callable[[], None] = lambda: None,
        source: str = "",
        folder: str = "",
    ):
        check_features(run.config.eval.features)
        self._source, self._folder = source or run.config.data.source, folder
        self._fidelity: Fidelity | None = None
        self._guide: Any = None
        if run.config.eval.generations and not isinstance(run.objective, SupportsTextGeneration):
            name = run.config.raw["objective"]["name"]
            raise UserError(
                f"eval.generations asks for texts to be continued, which '{name}' cannot: set it to"
                " 0"
            )
        self._run, self._dataset, self._tick = run, dataset, tick
        self._held_out, self._share = HeldOut(run.objective, run.mesh), process_shard(run.mesh)
        self._references: dict[str, float] = {}
        image = run.spec.modality == "image"
        self._samples = run.config.eval.fidelity if image else run.config.eval.generations > 0
        if run.config.eval.likelihood:
            if not isinstance(run.objective, SupportsLikelihood):
                name = run.config.raw["objective"]["name"]
                raise UserError(
                    f"eval.likelihood asks for exact likelihoods, which '{name}' has not: set it"
                    " to 0"
                )
            self._exact = HeldOut(run.objective, run.mesh, run.objective.likelihood)

    def __call__(self, state: TrainState) -> Metrics:
        """The metrics as numbers; for classes and tags also `report`, the scores of each."""
        run, c = self._run, self._run.config
        which = self._dataset.validation, c.eval.batch_size, c.eval.batches
        total = num_batches(*which)
        looks = dict(leave=False, unit="batch", delay=5, disable=not is_main_process())
        bar = tqdm(eval_batches(*which, self._share), "evaluating", total, **looks)

        def batches():
            for batch in bar:
                self._tick()
                yield batch

        metrics, predictions = self._held_out(state.sampling_params, state.mutables, batches())
        if c.eval.likelihood:
            metrics |= self._likelihood(state)
        state = sampling_state(state) if self._samples else state
        if is_main_process():
            more: dict[str, Callable[..., Metrics]] = {
                TOKENS: self._text,
                LEVELS: self._image,
                LABEL: self._labels,
                TAGS: self._tags,
            }
            metrics |= more[task_of(run.spec)](state, metrics, predictions)
        return metrics

    def _likelihood(self, state: TrainState) -> Metrics:
        """Exact likelihoods of the first held-out images."""
        count = min(self._run.config.eval.likelihood, len(self._dataset.validation))
        images = First(self._dataset.validation, count)
        devices = axis_size(self._run.mesh, *BATCH)
        which = images, min(self._run.config.eval.batch_size, -(-count // devices) * devices)
        which = *which, 0, self._share
        looks = dict(leave=False, disable=not is_main_process())
        batches = tqdm(eval_batches(*which), "likelihoods", num_batches(*which[:2]), **looks)
        found, _ = self._exact(state.sampling_params, state.mutables, batches)
        return found

    def _text(self, state: TrainState, metrics: Metrics, predictions: Metrics) -> Metrics:
        c = self._run.config
        found: Metrics = {"perplexity": math.exp(min(metrics["loss"], 700))}
        if c.eval.generations:
            found |= score_answers(self._run, self._dataset, state, c.eval.generations)
        # A part of the held-out text has no references for the whole of it.
        if "bits_per_byte" in metrics and self._dataset.texts and not c.eval.batches:
            if not self._references:
                texts = self._dataset.texts
                self._references = text_eval.baselines(texts["train"], texts["validation"])
            found |= self._references
        return found

    def _image(self, state: TrainState, metrics: Metrics, predictions: Metrics) -> Metrics:
        c = self._run.config
        if not c.eval.fidelity:
            return {}
        if self._fidelity is None:
            self._fidelity = fidelity_of(self._dataset, self._source, c.eval, self._folder)
            self._guide = guidance_model_of(self._run, c.sample)
        judge, objective = self._fidelity, self._run.objective
        variables = state.sampling_params, state.mutables
        labels = {} if judge.label_N is None else {"label": judge.label_N}
        conditions = {k: v for k, v in labels.items() if k in objective.conditions}
        request = make_request(
            objective, c.sample, judge.num, conditions=conditions, guidance_model=self._guide
        )
        images = generate(objective, *variables, request, c.eval.seed)
        out = os.path.join(self._folder, "samples", "neighbours.png") if self._folder else ""
        found = judge.report(images, out) | {"seed": c.eval.seed}
        found |= mode_report(self._dataset, images)
        if isinstance(objective, SupportsReconstruction):
            real = judge.images.held_out, judge.images.held_out_labels
            found |= judge.report_reconstructions(reconstructed(objective, *variables, *real))
        return found

    def _labels(self, state: TrainState, metrics: Metrics, predictions: Metrics) -> Metrics:
        real = predictions["true"] >= 0
        names = self._run.spec.class_names
        found = report(predictions["true"][real], predictions["predicted"][real], names)
        return {**found.metrics(), "report": found.to_json()}

    def _tags(self, state: TrainState, metrics: Metrics, predictions: Metrics) -> Metrics:
        names, real = np.array(self._run.spec.class_names), predictions["true"] >= 0
        if not is_bio(names):
            return self._labels(state, metrics, predictions)

        def words(tag_NT: np.ndarray) -> list[list[str]]:
            return [names[tag_T[at]].tolist() for tag_T, at in zip(tag_NT, real, strict=True)]

        found = entity_report(words(predictions["true"]), words(predictions["predicted"]))
        return {**found.metrics(), "report": found.to_json()}


@dataclasses.dataclass(frozen=True)
class First:
    """The first examples of a source."""

    source: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.source[index]
