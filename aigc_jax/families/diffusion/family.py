"""Diffusion models and MeanFlow as families."""

from typing import Any

from aigc_jax.core.modality import CONTINUOUS, LEVELS
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


def _arguments(parts: Parts) -> tuple[Any, Any, tuple[int, ...], int]:
    """Config, network, shape of an example and number of its levels (0: continuous)."""
    spec = parts.spec
    network = parts.network(parts.model, num_classes_of(parts.model, spec), parts.dtype)
    return parts.objective, network, spec.shape, 0 if spec.continuous else spec.levels


def _diffusion(parts: Parts) -> Objective:
    return diffusion.Diffusion(*_arguments(parts))


def _meanflow(parts: Parts) -> Objective:
    return meanflow.MeanFlow(*_arguments(parts))


DIFFUSION = Family(
    diffusion.DiffusionConfig,
    diffusion.DiffusionSample,
    DENOISERS,
    _diffusion,
    TASKS,
)
MEANFLOW = Family(meanflow.MeanFlowConfig, meanflow.MeanFlowSample, DENOISERS, _meanflow, TASKS)
