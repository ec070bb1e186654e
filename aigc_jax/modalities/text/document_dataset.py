"""Data sets of unlabelled text and conversations, in memory or streamed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import Example, LazyExamples, RawDataset
from aigc_jax.data.shuffle import permutation
from aigc_jax.data.source import Source, TrainSource
from aigc_jax.data.split import file_ends, held_out_split, hold_out, limit_train
from aigc_jax.distributed.main_process import log_main
from aigc_jax.modalities.text.chat_format import ANSWER
from aigc_jax.modalities.text.document_formats import (
    DOCUMENT_FORMATS,
    DocumentFormat,
    vocabulary_texts,
)
from aigc_jax.modalities.text.packing import Packed
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.streaming import StreamingSource
from aigc_jax.modalities.text.token_store import text_parts
from aigc_jax.modalities.text.tokenizers import Tokenizer, make_tokenizer

MAX_VOCABULARY_TEXT = 1 << 26  # maximum characters of streamed text for learning a vocabulary
MAX_HELD_OUT_TEXT = 1 << 24  # maximum characters of held-out documents of streamed text


@dataclasses.dataclass(frozen=True)
class _Documents:
    """Training and held-out documents.

    Attributes:
      train: training documents, in memory or read lazily.
      held_out: held-out documents, in memory.
      file_ends: number of training documents up to the end of each file, if they are in files.
    """

    train: Sequence[Any]
    held_out: list[Any]
    file_ends: np.ndarray | None = None


def document_dataset(raw: RawDataset, config: Data, ready: Tokenizer | None = None) -> Dataset:
    """Builds a data set of text in one of `DOCUMENT_FORMATS`, in memory or streamed.

    Args:
      raw: raw examples.
      config: the section `data`.
      ready: replaces the tokenizer of `data.tokenizer`.

    Raises:
      UserError: if there is too little text, or the tokenizer needs all text but it is streamed.
    """
    form = DOCUMENT_FORMATS[config.format]
    documents = (_lazy if raw.streamed else _in_memory)(raw, config, form)
    tokenizer = ready or (_sampled_tokenizer if raw.streamed else _tokenizer)(
        documents, config, form
    )
    train: TrainSource
    if raw.streamed:
        train = _streaming_source(documents, tokenizer, config, form)
    else:
        train = form.rows(documents.train, tokenizer, config, held_out=False)
        _check_rows("training", train, documents.train, config, form)
    validation = form.rows(documents.held_out, tokenizer, config, held_out=True)
    _check_rows("held-out", validation, documents.held_out, config, form)
    if raw.streamed:
        log_main(
            f"the text has more than data.in_memory={config.in_memory} bytes: it is streamed, and"
            f" {len(documents.held_out)} held-out documents are evaluated"
        )
    else:
        _log_dropped([train, validation], documents, form)
    spec = TextSpec(tokenizer, config.seq_len, config.format)
    if form.field == "messages":
        answered = [d for d in documents.held_out if any(m["role"] == ANSWER for m in d)]
        return Dataset(spec, train, validation, dialogues=answered)
    texts: dict[str, list[str]] = {}
    if not raw.streamed:
        texts = {"train": list(documents.train), "validation": documents.held_out}
    return Dataset(spec, train, validation, texts)


def _in_memory(raw: RawDataset, config: Data, form: DocumentFormat) -> _Documents:
    own = held_out_split(raw.splits)
    train = [example()[form.field] for example in raw.splits["train"]]
    if not any(_has_text(document, form) for document in train):
        raise UserError(f"the text of data.source='{shorten(config.source)}' is empty")
    if own is None:
        train, held_out = form.split(train, config)
    else:
        held_out = [example()[form.field] for example in raw.splits[own]]
    return _Documents(limit_train(train, config), held_out)


def _lazy(raw: RawDataset, config: Data, form: DocumentFormat) -> _Documents:
    train, own = raw.splits["train"], held_out_split(raw.splits)
    if own is None:
        indices, held_out = hold_out(len(train), config, "documents")
        evaluated = _first(train, held_out, form)
    else:
        indices = range(len(train))
        evaluated = _first(raw.splits[own], permutation(len(raw.splits[own]), 0), form)
    indices = limit_train(indices, config)
    ends = file_ends(train.ends if isinstance(train, LazyExamples) else None, indices, config)
    return _Documents(_Lazy(train, indices, form.field), evaluated, ends)


class _Lazy(Sequence[Any]):
    """Documents that are read lazily."""

    def __init__(
        self, examples: Sequence[Callable[[], Example]], indices: Sequence[int], field: str
    ):
        self._examples, self._indices, self._field = examples, indices, field

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]  # no slices
        return self._examples[int(self._indices[index])]()[self._field]


def _first(
    examples: Sequence[Callable[[], Example]],
    indices: Sequence[int] | np.ndarray,
    form: DocumentFormat,
) -> list[Any]:
    """Returns the first of these documents, up to `MAX_HELD_OUT_TEXT`."""
    found, size = [], 0
    for i in indices:
        document = examples[int(i)]()[form.field]
        found.append(document)
        size += sum(map(len, form.texts(document)))
        if size >= MAX_HELD_OUT_TEXT:
            break
    return found


def _tokenizer(documents: _Documents, config: Data, form: DocumentFormat) -> Tokenizer:
    """Makes the tokenizer: BPE learned from the training text, char from all text."""
    train, held_out = (
        vocabulary_texts(part, form, config.tokenizer)
        for part in (documents.train, documents.held_out)
    )
    if config.tokenizer == "bpe":
        return make_tokenizer(
            config.tokenizer, [p for text in train for p in text_parts(text)], config.vocab_size
        )
    return make_tokenizer(config.tokenizer, [*train, *held_out], config.vocab_size)


def _sampled_tokenizer(documents: _Documents, config: Data, form: DocumentFormat) -> Tokenizer:
    """Makes the tokenizer: BPE learned from random documents, up to `MAX_VOCABULARY_TEXT`."""
    if config.tokenizer == "char":
        raise UserError(
            "data.tokenizer=char needs all text in memory, but the text has more than"
            f" data.in_memory={config.in_memory} bytes: use byte, bpe or file:FILE"
        )
    texts: list[str] = []
    size, count = 0, len(documents.train)
    for number in permutation(count, 0) if config.tokenizer == "bpe" else ():
        document = "\n".join(form.texts(documents.train[int(number)]))
        texts += text_parts(document)
        size += len(texts[-1])
        if size >= MAX_VOCABULARY_TEXT:
            break
    return make_tokenizer(config.tokenizer, texts, config.vocab_size)


def _streaming_source(
    documents: _Documents, tokenizer: Tokenizer, config: Data, form: DocumentFormat
) -> StreamingSource:
    return StreamingSource(
        lambda number: form.encode(documents.train[number], tokenizer),
        len(documents.train),
        config.seq_len,
        form.packing,
        documents.file_ends,
        config.shuffle_window,
    )


def _has_text(document: Any, form: DocumentFormat) -> bool:
    return any(text.strip() for text in form.texts(document))


def _check_rows(
    split: str, rows: Source, documents: Sequence[Any], config: Data, form: DocumentFormat
) -> None:
    """Raises UserError if a split has nothing to predict."""
    if len(rows) and any(_has_text(document, form) for document in documents):
        return
    source = shorten(config.source)
    if form.field == "messages":
        raise UserError(
            f"no {split} conversation of data.source='{source}' has a message of the assistant:"
            " add some, or change data.validation_fraction"
        )
    raise UserError(
        f"the {split} text of data.source='{source}' is too short for rows of"
        f" data.seq_len={config.seq_len} tokens: add text, lower data.seq_len, or change"
        f" data.validation_fraction={config.validation_fraction}"
    )


def _log_dropped(rows: Sequence[TrainSource], documents: _Documents, form: DocumentFormat) -> None:
    dropped = sum(part.dropped for part in rows if isinstance(part, Packed))
    if dropped:
        unit = "conversations" if form.field == "messages" else "documents"
        count = len(documents.train) + len(documents.held_out)
        log_main(f"{dropped} of {count} {unit} are dropped: they have no target token")
