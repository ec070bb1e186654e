"""Metrics: measurements of a trained model that evaluation makes beside the objective's own.

A modality names its metrics (`Modality.metrics`); a config adds others with `eval.metrics`, by a
name in `METRICS` or by an import path `package.module:Class`.
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
    """A run as its metrics see it; the same for all its states.

    Attributes:
      objective: the family.
      objective_name: `objective.name` of the config.
      spec: of the data that the run was trained on.
      dataset: the data that it is evaluated on.
      source: their name, as in `data.source`.
      config: the section `eval`.
      options: the section `eval.MODALITY` of the data's modality; None if it has none.
      sample: the section `sample`.
      folder: the run's folder, for pictures and caches; "": nothing is written.
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
    """Draws samples from the model that is evaluated."""

    def __call__(
        self,
        num: int,
        *,
        options: Any = None,
        conditions: Mapping[str, Any] | None = None,
        init: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """`num` samples, as `Objective.sample` returns them.

        Args:
          num: how many.
          options: sampling options; those of the config if left out. Text ends at the strings
            `options.stop`.
          conditions: by name, one value per sample.
          init: what to begin with, by name; text begins with the prompts of the options.
          seed: of the random keys; `eval.seed` if left out.
        """
        ...


class Samples(Protocol):
    """The samples that all metrics share."""

    def __call__(self, num: int) -> np.ndarray:
        """The first `num` samples; they are given the conditions of training examples."""
        ...


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """One state of a model, and what has been measured so far.

    Attributes:
      params: `{player: parameters}`.
      mutables: `{player: mutables}`.
      metrics: of the held-out data, and of the metrics before.
      predictions: arrays (N, …) of `Objective.predict` for the N held-out examples, and rows of
        padding at the end.
      generate: draws samples of any request.
      samples: draws the samples that all metrics share, each only once.
    """

    params: Params
    mutables: Mutables
    metrics: Mapping[str, Any]
    predictions: Mapping[str, np.ndarray]
    generate: Generate
    samples: Samples


class Metric(abc.ABC):
    """A metric, or several that are measured together.

    One object is made per evaluated run, so it may keep what does not depend on the model, such as
    features of real images. It is called in the main process only.

    Attributes:
      needs_params: whether it reads `model.params` or draws samples; parameters that are sharded
        over processes are gathered for it.
    """

    needs_params: ClassVar[bool] = True

    def supports(self, context: EvaluationContext) -> bool:
        """Whether it can be measured for this objective and these data, and the config wants it."""
        del context
        return True

    def check(self, context: EvaluationContext) -> None:
        """Finds what would make it fail, before hours of training.

        Raises:
          UserError: for options that cannot be used, too few data, or a missing library.
        """
        del context

    @abc.abstractmethod
    def __call__(self, context: EvaluationContext, model: EvaluatedModel) -> dict[str, Any]:
        """Measures a model.

        Returns:
          Numbers by name; further plain JSON values are allowed, such as a report per class.
        """


METRICS: Registry[type[Metric]] = Registry("metric", "eval.metrics")
