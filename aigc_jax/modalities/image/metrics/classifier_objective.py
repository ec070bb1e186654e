"""Image classification: a family of one player, used to learn the features that judge images.

Shapes: B batch, K classes.
"""

from typing import Any

import jax
import optax

from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Objective, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.modalities.image.metrics.classifier_network import Classifier
from aigc_jax.ops.image import to_signed


class Classification(Objective):
    """One player, `model`: cross-entropy of the label, in nats."""

    turns = ("model",)

    def __init__(self, model: Classifier):
        self.model = model

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"model": self.model.init(rng, to_signed(batch["image"]))["params"]}, {}

    def _outcome(self, params: Params, batch: Batch) -> tuple[Mean, Metrics]:
        variables = {"params": params["model"]}
        outputs: Any = self.model.apply(variables, to_signed(batch["image"]))
        logits_BK: jax.Array = outputs[1]
        nats_B = optax.softmax_cross_entropy_with_integer_labels(logits_BK, batch["label"])
        correct_B = logits_BK.argmax(-1) == batch["label"]
        weight_B = batch["weight"]
        return Mean.of(nats_B, weight_B), {"accuracy": Mean.of(correct_B, weight_B)}

    def loss(self, player, params, mutables, batch, key_B, step):
        loss, metrics = self._outcome(params, batch)
        return loss, (metrics, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        loss, metrics = self._outcome(params, batch)
        return {"loss": loss, **metrics}

    def sample(self, params, mutables, key_N, request: SampleRequest):
        raise TypeError("a classifier does not generate")
