"""Diffusion models and MeanFlow as families."""

from typing import Any

from aigc_jax.core.modality import CONTINUOUS, LEVELS, modelled_field, task_of
from aigc_jax.core.objective import Objective
from aigc_jax.core.registry import Registry
from aigc_jax.families.diffusion import diffusion, meanflow
from aigc_jax.families.diffusion.dit import DiT, DiTConfig
from aigc_jax.families.diffusion.unet import UNet, UNetConfig
from aigc_jax.families.family import Family, Model, Parts, num_classes_of

# Networks are called with (config, classes, dtype).
DENOISERS: Registry[Model] = Registry(
    "denoiser", "model.name", {"unet": Model(UNetConfig, UNet), "dit": Model(DiTConfig, DiT)}
)
TASKS = (LEVELS, CONTINUOUS)


def _network_and_data(parts: Parts) -> dict[str, Any]:
    """The arguments of the objective beside its config; 0 levels: the data are continuous."""
    spec = parts.spec
    return dict(
        model=parts.network(parts.model, num_classes_of(parts.model, spec), parts.dtype),
        shape=spec.shape,
        levels=0 if task_of(spec) == CONTINUOUS else spec.levels,
        field=modelled_field(spec),
    )


def _diffusion(parts: Parts) -> Objective:
    return diffusion.Diffusion(parts.objective, **_network_and_data(parts))


def _meanflow(parts: Parts) -> Objective:
    return meanflow.MeanFlow(parts.objective, **_network_and_data(parts))


DIFFUSION = Family(
    diffusion.DiffusionConfig,
    diffusion.DiffusionSample,
    DENOISERS,
    _diffusion,
    TASKS,
)
MEANFLOW = Family(meanflow.MeanFlowConfig, meanflow.MeanFlowSample, DENOISERS, _meanflow, TASKS)
