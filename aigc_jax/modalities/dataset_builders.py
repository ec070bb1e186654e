"""Raw examples → a data set of their modality, by their kind."""

import dataclasses
from collections.abc import Callable

from aigc_jax.core.config import Data
from aigc_jax.core.modality import Spec
from aigc_jax.core.registry import Registry
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.modalities.image.image_dataset import image_dataset
from aigc_jax.modalities.text.text_dataset import for_evaluation, text_dataset
from aigc_jax.modalities.text.tokenizers import Tokenizer

# (raw examples, config, tokenizer to use, spec of a model that is evaluated on them) → data set.
DatasetBuilder = Callable[[RawDataset, Data, Tokenizer | None, Spec | None], Dataset]


def _image(
    raw: RawDataset, config: Data, tokenizer: Tokenizer | None, trained: Spec | None
) -> Dataset:
    del tokenizer, trained
    return image_dataset(raw, config)


def _text(
    raw: RawDataset, config: Data, tokenizer: Tokenizer | None, trained: Spec | None
) -> Dataset:
    if trained is None:
        return text_dataset(raw, config, tokenizer)
    dataset = text_dataset(for_evaluation(raw, trained.class_names), config, tokenizer)
    return dataclasses.replace(dataset, texts={})  # the model was not trained on these texts


DATASET_BUILDERS: Registry[DatasetBuilder] = Registry(
    "dataset_builder",
    "RawDataset.kind",
    {"image": _image, "text": _text, "messages": _text, "words": _text},
)


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
      tokenizer: one to use instead of that of `config.tokenizer`.
      trained: the spec of a trained model, if it is to be evaluated on these data.

    Raises:
      UserError: if the examples do not suit the config.
    """
    return DATASET_BUILDERS[raw.kind](raw, config, tokenizer, trained)
