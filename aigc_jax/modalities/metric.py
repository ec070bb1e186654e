"""Metric: interface of evaluation metrics other than those of the objective.

A modality lists its metrics (`Modality.metrics`); a config adds others by `eval.metrics`, with a
name in `METRICS` or an import path `package.module:Class`.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from aigc_jax.core.config import Eval
from aigc_jax.core.modality import Spec
from aigc_jax.core.objective import Mutables, Objective, Params
from aigc_jax.core.registry import Registry
from aigc_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class EvaluationContext:
    """The run to be evaluated, and its data.

    Attributes:
      objective: the objective.
      objective_name: `objective.name` of the config.
      spec: spec of the data that the run was trained on.
      dataset: the data for evaluation.
      source: their `data.source`.
      config: the section `eval`.
      options: the section `eval.MODALITY` of the data's modality; None if it has none.
      sample: the section `sample`.
      folder: the run's folder, for pictures and caches; "" disables writing.
    """

    objective: Objective
    objective_name: str
    spec: Spec
    dataset: Dataset
    source: str
    config: Eval
    options: Any
    sample: Any
    folder: str = ""


class Generate(Protocol):
    """Draws samples from the evaluated model."""

    def __call__(
        self,
        num: int,
        *,
        options: Any = None,
        conditions: Mapping[str, Any] | None = None,
        init: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Returns `num` samples, in the form of `Objective.sample`.

        Args:
          num: number of samples.
          options: sampling options; defaults to the config's. Text ends at the strings
            `options.stop`.
          conditions: condition values by name, one per sample.
          init: initial values by name; for text it defaults to the prompts of the options.
          seed: random seed; defaults to `eval.seed`.
        """
        ...


class Samples(Protocol):
    """Draws the samples shared by all metrics."""

    def __call__(self, num: int) -> np.ndarray:
        """Returns the first `num` samples, with the conditions of training examples."""
        ...


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """A state of the model, with the metrics so far.

    Attributes:
      params: `{player: parameters}`.
      mutables: `{player: mutables}`.
      metrics: metrics of the held-out data, and those of earlier metrics.
      predictions: outputs (N, …) of `predict` for the N held-out examples, followed by rows of
        padding.
      generate: draws samples for any request.
      samples: draws the samples shared by all metrics, each only once.
    """

    params: Params
    mutables: Mutables
    metrics: Mapping[str, Any]
    predictions: Mapping[str, np.ndarray]
    generate: Generate
    samples: Samples


class Metric(abc.ABC):
    """A metric, or several that are computed together.

    There is one instance per evaluated run, which may cache values that do not depend on the model,
    such as features of real images. It is called in the main process only.

    Attributes:
      needs_params: whether it reads `model.params` or draws samples; parameters that are sharded
        over processes are gathered for it.
    """

    needs_params: ClassVar[bool] = True

    def supports(self, context: EvaluationContext) -> bool:
        """Returns whether it applies to the objective and the data, and the config enables it."""
        del context
        return True

    def check(self, context: EvaluationContext) -> None:
        """Validates options and data before training.

        Raises:
          UserError: for invalid options, insufficient data, or a missing library.
        """
        del context

    @abc.abstractmethod
    def __call__(self, context: EvaluationContext, model: EvaluatedModel) -> dict[str, Any]:
        """Computes the metric of a model.

        Returns:
          Numbers by name; further plain JSON values are allowed, such as a report per class.
        """


METRICS: Registry[type[Metric]] = Registry("metric", "eval.metrics")
