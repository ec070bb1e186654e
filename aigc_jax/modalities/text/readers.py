"""Registers the readers and the data-set builder of text."""

import dataclasses

from aigc_jax.core.config import Data
from aigc_jax.core.modality import Spec
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.modalities.registries import DATASET_BUILDERS, FIELD_READERS, READERS, FieldReader
from aigc_jax.modalities.text.conll import read_conll
from aigc_jax.modalities.text.messages import read_messages
from aigc_jax.modalities.text.text_dataset import for_evaluation, text_dataset
from aigc_jax.modalities.text.text_files import read_jsonl, read_text
from aigc_jax.modalities.text.text_records import (
    labelled_text_dataset,
    messages_dataset,
    tagged_text_dataset,
)
from aigc_jax.modalities.text.tokenizers import Tokenizer

READERS.register("text", lambda path, _: read_text(path))
READERS.register(
    "jsonl", lambda path, options: read_jsonl(path, options.text_field, options.label_field)
)
READERS.register("messages", lambda path, _: read_messages(path))
READERS.register("conll", lambda path, _: read_conll(path))

FIELD_READERS.register(
    "text",
    FieldReader(
        lambda splits, class_names: labelled_text_dataset(
            {s: (columns["text"], columns.get("label")) for s, columns in splits.items()},
            class_names,
        ),
        optional=("label",),
    ),
)
FIELD_READERS.register(
    "messages",
    FieldReader(lambda splits, _: messages_dataset({s: c["messages"] for s, c in splits.items()})),
)
FIELD_READERS.register(
    "words",
    FieldReader(
        lambda splits, _: tagged_text_dataset(
            {s: (columns["words"], columns["tags"]) for s, columns in splits.items()}
        ),
        required=("tags",),
    ),
)


def build_text(
    raw: RawDataset, config: Data, tokenizer: Tokenizer | None, trained: Spec | None
) -> Dataset:
    """Builds the data set of raw text; for a trained model, all of it is held out."""
    if trained is None:
        return text_dataset(raw, config, tokenizer)
    dataset = text_dataset(for_evaluation(raw, trained.class_names), config, tokenizer)
    return dataclasses.replace(dataset, texts={})  # the model was not trained on these texts


for kind in ("text", "messages", "words"):
    DATASET_BUILDERS.register(kind, build_text)
