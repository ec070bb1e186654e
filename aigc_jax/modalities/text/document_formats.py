"""Formats of unlabelled text: how documents and conversations become tokens and rows.

The one place that joins and packs: text in memory and text that is streamed differ only in when a
document is read and in how many documents are seen at a time.
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
from aigc_jax.modalities.text.token_windows import TokenWindows, join, with_separator
from aigc_jax.modalities.text.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class DocumentFormat:
    """A value of `data.format` whose rows are made of documents.

    Attributes:
      field: the field of a raw example that has the document: "text" or "messages".
      encode: (document, tokenizer) → its tokens and their weights as targets.
      texts: document → its plain texts.
      split: (documents, config) → training and held-out documents.
      packing: the row stream of documents that are streamed.
      joined: whether rows are windows of all documents, concatenated; else documents are packed.
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
        """Rows of documents that fit into memory; none if there is no target.

        Args:
          documents: text or conversations.
          tokenizer: text → tokens.
          config: the section `data`.
          held_out: whether these are for evaluation: windows overlap then, so that tokens are not
            predicted from little context.
        """
        length = config.seq_len
        encoded = (self.encode(document, tokenizer) for document in documents)
        if not self.joined:
            return pack(encoded, length, tokenizer.size)
        stride = (config.eval_stride or max(length // 2, 1)) if held_out else None
        stream = join(encoded, tokenizer)
        return TokenWindows(stream, length, stride) if len(stream) > length else []


def vocabulary_texts(documents: Sequence[Any], form: DocumentFormat, tokenizer: str) -> list[str]:
    """The texts from which a tokenizer's vocabulary is learned.

    Args:
      documents: text or conversations.
      form: their format.
      tokenizer: `data.tokenizer`; the vocabulary of char must be able to spell a turn's marks.
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
