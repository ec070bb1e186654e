"""In-memory storage of the tokens of documents."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from aigc_jax.modalities.text.tokenizers import Tokenizer

# Tokens, and the weight of each as a target, or None for 1.
Document = tuple[np.ndarray, np.ndarray | None]

PART = 1 << 20  # characters that are tokenized at once
LINE = re.compile(r"(?<=\S\n)(?=\S)")  # start of a line after one that is not blank


def text_parts(document: str) -> Iterator[str]:
    """Cuts a long document into parts that can be tokenized one by one.

    Parts start at a line after one that is not blank: byte-level BPE always cuts words there, so
      the tokens are those of the complete document.
    """
    start = 0
    while len(document) - start > PART:
        line = LINE.search(document, start + PART)
        if line is None:
            break
        yield document[start : line.start()]
        start = line.start()
    yield document[start:] if start else document


class TokenStore:
    """Growing array of tokens, in the smallest dtype for the vocabulary.

    Args:
      size: size of the vocabulary.
    """

    def __init__(self, size: int):
        self._dtype = np.dtype(np.uint16 if size <= 1 << 16 else np.int32)
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data) // self._dtype.itemsize

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        self._data += np.asarray(tokens, self._dtype).tobytes()

    def add_text(self, text: str, tokenizer: Tokenizer) -> None:
        for part in text_parts(text):
            self.add(tokenizer.encode(part))

    def array(self) -> np.ndarray:
        """Returns all tokens; none can be added afterwards."""
        return np.frombuffer(self._data, self._dtype)
