"""Evaluates the states of a run: held-out metrics, then the metrics of the data's modality."""

from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from aigc_jax.core.errors import UserError
from aigc_jax.core.feed import HostBatch
from aigc_jax.core.modality import MODALITIES
from aigc_jax.core.state import TrainState
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.fixed_batches import eval_batches, num_batches
from aigc_jax.distributed.gather import sampling_state
from aigc_jax.distributed.main_process import is_main_process
from aigc_jax.distributed.mesh import process_shard
from aigc_jax.evaluation.heldout import HeldOut
from aigc_jax.evaluation.likelihood import LikelihoodMetric, check_likelihood
from aigc_jax.evaluation.samples import SampleDrawer
from aigc_jax.experiment.build import Run
from aigc_jax.experiment.eval_options import modality_options
from aigc_jax.modalities.metric import METRICS, EvaluatedModel, EvaluationContext, Metric

Metrics = dict[str, Any]


class Evaluator:
    """Evaluates a run's states.

    Args:
      run: its parts.
      dataset: the data to evaluate on.
      heartbeat: called after each batch.
      source: name of the data, if they are not the run's own.
      folder: where metrics write pictures and caches; "": nowhere.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        heartbeat: Callable[[], None] = lambda: None,
        source: str = "",
        folder: str = "",
    ):
        config = run.config
        self._run, self._dataset, self._heartbeat = run, dataset, heartbeat
        self._context = EvaluationContext(
            objective=run.objective,
            objective_name=config.raw["objective"]["name"],
            spec=run.spec,
            dataset=dataset,
            source=source or config.data.source,
            config=config.eval,
            options=modality_options(config.eval, run.spec.modality),
            sample=config.sample,
            folder=folder,
        )
        self._held_out, self._shard = HeldOut(run.objective, run.mesh), process_shard(run.mesh)
        self._draw = SampleDrawer(run, dataset)
        self._metrics: list[Metric] | None = None
        self._likelihood: LikelihoodMetric | None = None

    def check(self) -> None:
        """Finds what would make an evaluation fail, before a model is trained.

        Raises:
          UserError: for options that cannot be used, too few data, or a missing library.
        """
        if self._metrics is None:
            check_likelihood(self._context)
            if self._context.config.likelihood_examples:
                self._likelihood = LikelihoodMetric(self._run, self._dataset)
            self._metrics = metrics_of(self._context)

    def __call__(self, state: TrainState) -> Metrics:
        """Evaluates a state; all processes call it together.

        Returns:
          Metrics as numbers; some metrics return further plain values, such as the `report` of a
          classification. Processes other than the first have only the held-out metrics.

        Raises:
          UserError: as `check`.
        """
        self.check()
        found, predictions = self._held_out(
            state.sampling_params, state.mutables, self._held_out_batches()
        )
        if self._likelihood is not None:
            found |= self._likelihood(state)
        assert self._metrics is not None
        if any(metric.needs_params for metric in self._metrics):
            state = sampling_state(state)
        if is_main_process():
            draw = self._draw.of(state)
            for metric in self._metrics:
                model = EvaluatedModel(
                    state.sampling_params, state.mutables, found, predictions, draw, draw.shared
                )
                found |= metric(self._context, model)
        return found

    def _held_out_batches(self) -> Iterator[HostBatch]:
        config = self._context.config
        which = self._dataset.validation, config.batch_size, config.batches
        looks = dict(leave=False, unit="batch", delay=5, disable=not is_main_process())
        batches = eval_batches(*which, self._shard)
        for batch in tqdm(batches, "evaluating", num_batches(*which), **looks):
            self._heartbeat()
            yield batch


def metrics_of(context: EvaluationContext) -> list[Metric]:
    """The metrics of a run, checked: those of the modality that support it, and `eval.metrics`.

    Raises:
      UserError: if a metric of `eval.metrics` does not exist or does not support the run, or one
        cannot be measured.
    """
    own = [METRICS[name]() for name in MODALITIES[context.spec.modality].metrics]
    metrics = [metric for metric in own if metric.supports(context)]
    for name in context.config.metrics:
        metric = METRICS[name]()
        if not metric.supports(context):
            raise UserError(
                f"eval.metrics names '{name}', which does not support"
                f" objective.name='{context.objective_name}' on data of the modality"
                f" '{context.spec.modality}': leave it out"
            )
        metrics.append(metric)
    for metric in metrics:
        metric.check(context)
    return metrics
