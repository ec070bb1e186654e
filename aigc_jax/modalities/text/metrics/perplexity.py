"""Perplexity of held-out text, and compressors on the same text for comparison."""

import math
from typing import Any

from aigc_jax.core.modality import TOKENS, task_of
from aigc_jax.modalities.metric import EvaluatedModel, EvaluationContext, Metric
from aigc_jax.modalities.text.metrics import compression_baselines

MAX_LOSS = 700.0  # nats whose exponential a float holds


class Perplexity(Metric):
    """`perplexity`, and bits per byte of bz2 and of an order-3 model on the same text.

    The compressors are only run if all of the held-out text is evaluated.
    """

    needs_params = False

    def __init__(self) -> None:
        self._baselines: dict[str, float] = {}

    def supports(self, context: EvaluationContext) -> bool:
        return task_of(context.spec) == TOKENS

    def __call__(self, context: EvaluationContext, model: EvaluatedModel) -> dict[str, Any]:
        found = {"perplexity": math.exp(min(model.metrics["loss"], MAX_LOSS))}
        texts = context.dataset.texts
        if "bits_per_byte" in model.metrics and texts and not context.config.batches:
            if not self._baselines:
                self._baselines = compression_baselines.baselines(
                    texts["train"], texts["validation"]
                )
            found |= self._baselines
        return found
