"""Loads the data set of a run, from its config or from Python objects."""

from typing import Any

from aigc_jax.core.config import Data
from aigc_jax.data.dataset import Dataset
from aigc_jax.experiment.restore import tokenizer_of
from aigc_jax.modalities import sources
from aigc_jax.modalities.in_memory import dataset_from_python


def load_dataset(config: Data, data: Any = None) -> Dataset:
    """Loads the training and held-out examples of a run.

    Args:
      config: the section `data`.
      data: examples from Python that replace `config.source`, in a form that
        `dataset_from_python` accepts: arrays, lists, generators, Hugging Face data sets or data
        frames.

    Raises:
      UserError: if the data cannot be found or used.
    """
    tokenizer = tokenizer_of(config)
    if data is None:
        return sources.load_source(config, tokenizer)
    return dataset_from_python(data, config, tokenizer)
