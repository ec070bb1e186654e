"""Specs of synthetic data, from a shape or from the config alone."""

from collections.abc import Collection

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import MODALITIES, Spec, task_of


def synthetic_spec(shape: str, config: Config) -> Spec:
    """Returns the spec of random data of a shape.

    Args:
      shape: "text", or "text:9" with nine classes or tags; "32x32x3" or "32x32x3:10" (height,
        width, channels and classes), with the prefix "latents:" for an autoencoder's latents; or a
        form of a modality of another package.
      config: config of the run.

    Raises:
      UserError: if no modality accepts the shape, or it does not suit the config.
    """
    for modality in MODALITIES.values():
        spec = modality.synthetic_spec(shape, config) if shape else None
        if spec is not None:
            return spec
    raise UserError(
        f"--synthetic={shape} is not a shape of data: write text (text:CLASSES for data.format="
        "labels or tags), or height, width and channels as in 32x32x3, and classes behind them"
        " as in 32x32x3:10"
    )


def spec_from_config(config: Config, tasks: Collection[str]) -> Spec | None:
    """Returns the spec of a config's data if the config implies it; else None.

    Args:
      config: config of the run.
      tasks: kinds of field that its family models; see `core.modality.task_of`.
    """
    for modality in MODALITIES.values():
        spec = modality.synthetic_spec("", config)
        if spec is not None and task_of(spec) in tasks:
            return spec
    return None
