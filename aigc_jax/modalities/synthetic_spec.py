"""Specs of data that are not read: of a shape that a person writes, or of the config alone."""

from collections.abc import Collection

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import MODALITIES, Spec, task_of


def synthetic_spec(shape: str, config: Config) -> Spec:
    """The spec of random data of a shape.

    Args:
      shape: "text", or "text:9" with nine classes or tags; "32x32x3" or "32x32x3:10" (height,
        width, channels and classes), with "latents:" before it for an autoencoder's latents; or
        what a modality of another package understands.
      config: of the run.

    Raises:
      UserError: if no modality understands the shape, or it does not suit the config.
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
    """The spec of the data of a config, if it follows from the config without reading them.

    Args:
      config: of the run.
      tasks: the kinds of field that its family models; see `core.modality.task_of`.
    """
    for modality in MODALITIES.values():
        spec = modality.synthetic_spec("", config)
        if spec is not None and task_of(spec) in tasks:
            return spec
    return None
