"""Builds the data set of raw examples by their kind."""

from aigc_jax.core.config import Data
from aigc_jax.core.modality import Spec
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.modalities.registries import DATASET_BUILDERS, import_readers
from aigc_jax.modalities.text.tokenizers import Tokenizer

import_readers()


def build_dataset(
    raw: RawDataset,
    config: Data,
    tokenizer: Tokenizer | None = None,
    trained: Spec | None = None,
) -> Dataset:
    """Builds the data set of raw examples.

    Args:
      raw: the examples.
      config: the section `data`.
      tokenizer: replaces that of `config.tokenizer`.
      trained: spec of a trained model to be evaluated on these data; else None.

    Raises:
      UserError: if the examples do not suit the config.
    """
    return DATASET_BUILDERS[raw.kind](raw, config, tokenizer, trained)
