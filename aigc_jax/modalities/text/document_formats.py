"""Formats of unlabelled text: documents and conversations to tokens and rows.

Text in memory and streamed text share this implementation of concatenation and packing; they differ
in when a document is read and in how many documents are considered at a time.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aigc_jax.core.config import Data
from aigc_jax.data.source import Source
from aigc_jax.data.split import hold_out
from aigc_jax.modalities.text.chat_format import chatml, plain_turns, render
from aigc_jax.modalities.text.document_split import last_documents, split_documents
from aigc_jax.modalities.text.packing import pack, with_special_tokens
from aigc_jax.modalities.text.streaming import BestFitPack, ConcatThenSplit, RowStream
from aigc_jax.modalities.text.token_store import Document
from aigc_jax.modalities.text.token_windows import TokenWindows, concatenate, with_separator
from aigc_jax.modalities.text.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class DocumentFormat:
    """Implementation of a value of `data.format` for documents.

    Attributes:
      field: field of the document in a raw example: "text" or "messages".
      encode: maps (document, tokenizer) to tokens and their weights as targets.
      texts: maps a document to its plain texts.
      split: maps (documents, config) to training and held-out documents.
      packing: class of row streams for streamed documents.
      joined: whether rows are windows of the concatenated documents; else documents are packed.
    """

    field: str
    encode: Callable[[Any, Tokenizer], Document]
    texts: Callable[[Any], list[str]]
    split: Callable[[list[Any], Data], tuple[list[Any], list[Any]]]
    packing: type[RowStream]
    joined: bool = False

    def rows(
        self, documents: Iterable[Any], tokenizer: Tokenizer, config: Data, held_out: bool
    ) -> Source:
        """Returns rows of documents in memory; an empty source if there is no target.

        Args:
          documents: texts or conversations.
          tokenizer: tokenizer.
          config: the section `data`.
          held_out: whether the rows are for evaluation, where windows overlap to give every token
            enough context.
        """
        length = config.seq_len
        encoded = (self.encode(document, tokenizer) for document in documents)
        if not self.joined:
            return pack(encoded, length, tokenizer.size)
        stride = (config.eval_stride or max(length // 2, 1)) if held_out else None
        stream = concatenate(encoded, tokenizer)
        return TokenWindows(stream, length, stride) if len(stream) > length else []


def vocabulary_texts(documents: Sequence[Any], form: DocumentFormat, tokenizer: str) -> list[str]:
    """Returns the texts for learning a tokenizer's vocabulary.

    Args:
      documents: texts or conversations.
      form: their format.
      tokenizer: `data.tokenizer`; the vocabulary of char must cover the special tokens of ChatML.
    """
    if form.field == "messages" and tokenizer == "char":
        return [chatml(document, answer=True) for document in documents]
    return [text for document in documents for text in form.texts(document)]


def _split_text(texts: list[Any], config: Data) -> tuple[list[Any], list[Any]]:
    if config.split == "tail":
        return last_documents(texts, config.validation_fraction)
    return split_documents(texts, config.validation_fraction, config.split_seed)


def _split_dialogues(dialogues: list[Any], config: Data) -> tuple[list[Any], list[Any]]:
    train, held_out = hold_out(len(dialogues), config, "conversations")
    return [dialogues[i] for i in train], [dialogues[i] for i in held_out]


DOCUMENT_FORMATS = {
    "stream": DocumentFormat(
        "text", with_separator, lambda text: [text], _split_text, ConcatThenSplit, joined=True
    ),
    "documents": DocumentFormat(
        "text", with_special_tokens, lambda text: [text], _split_text, BestFitPack
    ),
    "chat": DocumentFormat("messages", render, plain_turns, _split_dialogues, BestFitPack),
}
