"""Writes a run's samples to files, in the format of their modality."""

import os

import numpy as np

from aigc_jax.core.capabilities import SupportsText
from aigc_jax.core.config import Sample
from aigc_jax.core.errors import StorageError, UserError, shorten
from aigc_jax.core.modality import MODALITIES, Modality
from aigc_jax.core.objective import Objective
from aigc_jax.core.state import TrainState
from aigc_jax.experiment.build import Run
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.experiment.restore import guidance_model_of

Samples = np.ndarray | list[str]


def decode_samples(objective: Objective, samples: np.ndarray, options: Sample) -> Samples:
    """Decodes tokens of a text family to texts; returns other samples unchanged."""
    return objective.texts(samples, options) if isinstance(objective, SupportsText) else samples


def write_samples(samples: Samples, path: str) -> str:
    """Writes samples in the format of their modality: a PNG grid of images, or a text file.

    Args:
      samples: from `sample`.
      path: path of the file; without a suffix, that of the modality is appended.

    Returns:
      The path of the file.

    Raises:
      UserError: if no modality accepts the samples.
      StorageError: if the file cannot be written.
    """
    modality = _modality_of(samples)
    path = path if os.path.splitext(path)[1] else path + modality.suffix
    try:
        return modality.save(samples, path)
    except OSError as e:
        raise StorageError(f"{path} cannot be written: {e.strerror or e}") from e


def save_samples(run: Run, state: TrainState, path: str) -> str:
    """Draws and saves samples by the options of the config section `sample`.

    Args:
      run: the run.
      state: from `sampling_state`, so that this process can sample independently.
      path: path of the file.
    """
    options = run.config.sample
    guide = guidance_model_of(run, options)
    variables = state.sampling_params, state.mutables
    request = make_request(run.objective, options, options.num, guidance_model=guide)
    samples = generate(run.objective, *variables, request)
    return write_samples(decode_samples(run.objective, samples, options), path)


def _modality_of(samples: Samples) -> Modality:
    for modality in MODALITIES.values():
        if modality.is_samples(samples):
            return modality
    kind = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else type(samples)
    raise UserError(
        f"no modality accepts samples of the type {shorten(kind, 80)}:"
        f" {', '.join(MODALITIES.names())} are known"
    )
