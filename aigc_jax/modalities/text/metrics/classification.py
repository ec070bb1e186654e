"""Scores of predicted labels and tags."""

from typing import Any

import numpy as np

from aigc_jax.core.modality import LABEL, TAGS, task_of
from aigc_jax.modalities.metric import EvaluatedModel, EvaluationContext, Metric
from aigc_jax.modalities.text.metrics.classification_report import (
    Report,
    entity_report,
    is_bio,
    report,
)


class Classification(Metric):
    """Precision, recall and F1 of labels, of tags, or of the entities that BIO tags mark.

    It reads the predictions "true" and "predicted" (N,) or (N, T), −1 for padding, and adds
    `report`, the scores of each class.
    """

    needs_params = False

    def supports(self, context: EvaluationContext) -> bool:
        return task_of(context.spec) in (LABEL, TAGS)

    def __call__(self, context: EvaluationContext, model: EvaluatedModel) -> dict[str, Any]:
        true, predicted = model.predictions["true"], model.predictions["predicted"]
        names = context.spec.class_names
        if task_of(context.spec) == TAGS and is_bio(names):
            found = _entities(true, predicted, names)
        else:
            real = true >= 0
            found = report(true[real], predicted[real], names)
        return {**found.metrics(), "report": found.to_json()}


def _entities(true_NT: np.ndarray, predicted_NT: np.ndarray, names: tuple[str, ...]) -> Report:
    """The scores of entities, given tags (N, T)."""
    name_K, real_NT = np.array(names), true_NT >= 0

    def words(tag_NT: np.ndarray) -> list[list[str]]:
        return [name_K[tag_T[at]].tolist() for tag_T, at in zip(tag_NT, real_NT, strict=True)]

    return entity_report(words(true_NT), words(predicted_NT))
