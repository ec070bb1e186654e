"""Metrics of generated and reconstructed images beside real ones."""

import os
from typing import Any

from aigc_jax.core.capabilities import SupportsReconstruction
from aigc_jax.core.modality import LEVELS, task_of
from aigc_jax.modalities.image.eval_options import ImageEval
from aigc_jax.modalities.image.metrics.feature_networks import check_features
from aigc_jax.modalities.image.metrics.fidelity import Fidelity, fidelity_of
from aigc_jax.modalities.image.metrics.mode_coverage import mode_coverage
from aigc_jax.modalities.image.metrics.real_images import check_enough
from aigc_jax.modalities.image.metrics.reconstruction import reconstruct
from aigc_jax.modalities.metric import EvaluatedModel, EvaluationContext, Metric


def _options(context: EvaluationContext) -> ImageEval:
    assert isinstance(context.options, ImageEval)
    return context.options


class SampleQuality(Metric):
    """Distances of samples from real images, precision and recall, copies, covered modes.

    Objectives that reconstruct are also measured on reconstructions of the held-out images. A
    picture of the nearest training images is written to `samples/neighbours.png`.
    """

    def __init__(self) -> None:
        self._fidelity: Fidelity | None = None

    def supports(self, context: EvaluationContext) -> bool:
        return _options(context).fidelity and task_of(context.spec) == LEVELS

    def check(self, context: EvaluationContext) -> None:
        check_features(_options(context).features)
        sizes = len(context.dataset.train), len(context.dataset.validation)
        check_enough(*sizes, context.config.num_samples or sizes[0])

    def __call__(self, context: EvaluationContext, model: EvaluatedModel) -> dict[str, Any]:
        if self._fidelity is None:
            self._fidelity = fidelity_of(
                context.dataset,
                context.source,
                _options(context),
                context.config.num_samples,
                context.folder,
            )
        fidelity, folder = self._fidelity, context.folder
        images = model.samples(fidelity.num)
        out = os.path.join(folder, "samples", "neighbours.png") if folder else ""
        found = fidelity.report(images, out) | {"seed": context.config.seed}
        found |= mode_coverage(context.dataset, images)
        if isinstance(context.objective, SupportsReconstruction):
            real = fidelity.images.held_out, fidelity.images.held_out_labels
            variables = model.params, model.mutables
            found |= fidelity.report_reconstructions(
                reconstruct(context.objective, *variables, *real)
            )
        return found
