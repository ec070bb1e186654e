"""A run's samples as a person wants them: images in a PNG, tokens as text."""

import os
from typing import Any

import numpy as np

from aigc_jax.core.errors import StorageError
from aigc_jax.core.state import TrainState
from aigc_jax.experiment.build import Run
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.experiment.restore import guidance_model_of
from aigc_jax.runs.report.grid import save_images, save_texts


def decode(run: Run, samples: np.ndarray, options: Any) -> np.ndarray | list[str]:
    """Images as they are; what a family of text has drawn as texts."""
    return samples if run.spec.modality == "image" else run.objective.texts(samples, options)


def save(samples: np.ndarray | list[str], path: str) -> str:
    """A PNG grid of images, or a text file; returns its path. The suffix is added if missing.

    Raises:
      StorageError: if it cannot be written.
    """
    text = isinstance(samples, list)
    path = path if os.path.splitext(path)[1] else path + (".txt" if text else ".png")
    try:
        return save_texts(samples, path) if text else save_images(samples, path)
    except OSError as e:
        raise StorageError(f"{path} cannot be written: {e.strerror or e}") from e


def save_samples(run: Run, state: TrainState, path: str) -> str:
    """Draws and saves what the recipe's `sample` section asks for.

    Args:
      run: its parts.
      state: from `for_sampling`, so that this process can draw from it alone.
      path: of the file.
    """
    options = run.config.sample
    guide = guidance_model_of(run, options)
    variables = state.sampling_params, state.mutables
    request = make_request(run.objective, options, options.num, guidance_model=guide)
    samples = generate(run.objective, *variables, request)
    return save(decode(run, samples, options), path)
