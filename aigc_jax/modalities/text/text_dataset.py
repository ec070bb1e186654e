"""Builds data sets of text by `data.format`."""

import dataclasses
from collections.abc import Callable, Sequence

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import Example, RawDataset
from aigc_jax.data.split import held_out_split
from aigc_jax.modalities.text.document_dataset import document_dataset
from aigc_jax.modalities.text.document_formats import DOCUMENT_FORMATS
from aigc_jax.modalities.text.labelled_dataset import labelled_dataset, tagged_dataset
from aigc_jax.modalities.text.tokenizers import Tokenizer

CONTENTS = {"messages": "conversations", "words": "words with tags"}
TASKS = {"labels": labelled_dataset, "tags": tagged_dataset}


def text_dataset(raw: RawDataset, config: Data, ready: Tokenizer | None = None) -> Dataset:
    """Builds the data set of raw text in the format `data.format`.

    Args:
      raw: raw examples.
      config: the section `data`.
      ready: replaces the tokenizer of `data.tokenizer`.

    Raises:
      UserError: if the source does not have this format, or too little text.
    """
    check_format(raw, config)
    if config.format == "stream" and config.eval_stride > config.seq_len:
        raise UserError(
            f"data.eval_stride={config.eval_stride} must be at most data.seq_len={config.seq_len}"
        )
    if config.format in DOCUMENT_FORMATS:
        return document_dataset(raw, config, ready)
    return TASKS[config.format](raw, config, ready)


def for_evaluation(raw: RawDataset, class_names: Sequence[str]) -> RawDataset:
    """Selects data to evaluate a trained model on: the held-out split, or all if there is none.

    Args:
      raw: raw examples.
      class_names: the model's classes, in order; () without classes.

    Raises:
      UserError: for a class that the model does not have.
    """
    examples = raw.splits[held_out_split(raw.splits) or "train"]
    if class_names and raw.class_names:
        unknown = set(raw.class_names) - set(class_names)
        if unknown:
            raise UserError(
                f"the model does not know the class '{shorten(min(unknown), 80)}': its classes are"
                f" {shorten(', '.join(class_names), 200)}"
            )
        number = [list(class_names).index(name) for name in raw.class_names]

        def renumbered(example: Callable[[], Example]) -> Callable[[], Example]:
            return lambda: (found := example()) | {"label": number[int(found["label"])]}

        examples = [renumbered(example) for example in examples]
    splits = {"train": examples, "validation": examples}
    return dataclasses.replace(raw, splits=splits, class_names=tuple(class_names))


def check_format(raw: RawDataset, config: Data) -> None:
    """Raises UserError with the possible formats unless `data.format` is one of them."""
    formats = {
        "text": ("stream", "documents", *(["labels"] if raw.class_names else [])),
        "messages": ("chat",),
        "words": ("tags",),
    }[raw.kind]
    if config.format in formats:
        return
    text = "text without labels" if config.format == "labels" else "text"
    contents = CONTENTS.get(raw.kind, text)
    why = f" ({raw.unlabelled})" if config.format == "labels" and raw.unlabelled else ""
    raise UserError(
        f"data.source='{shorten(config.source)}' has {contents}{why}, which data.format="
        f"{config.format} cannot use: set data.format={' or '.join(formats)}"
    )
