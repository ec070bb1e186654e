"""Packing: several complete documents or conversations per row of fixed length.

`segments` numbers the documents of a row, so that attention stays within a document.
Shapes: T targets of a row, P packed pieces.
"""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from aigc_jax.modalities.text.token_store import Document, TokenStore
from aigc_jax.modalities.text.tokenizers import Tokenizer


class Packed:
    """Examples `{"tokens" (T+1), "segments" (T+1), "weight" (T)}`; see `pack`.

    Args:
      tokens: tokens of all documents.
      weights: weight of each token as a target; None for 1.
      first, length: first token and length of each piece, (P,).
      row: row of each piece, (P,), from 0 without gaps.
      seq_len: T.
      dropped: number of documents without a target.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        weights: np.ndarray | None,
        first: np.ndarray,
        length: np.ndarray,
        row: np.ndarray,
        seq_len: int,
        dropped: int = 0,
    ):
        self._tokens, self._weights = tokens, weights
        order = np.argsort(row, kind="stable")
        self._first, self._length = first[order], length[order]
        # Row i has the pieces start[i] … start[i + 1] − 1.
        self._start = np.searchsorted(row[order], np.arange(row.max(initial=-1) + 2))
        self.seq_len, self.dropped = seq_len, dropped

    def __len__(self) -> int:
        return len(self._start) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        pieces = range(self._start[index], self._start[index + 1])
        return fill_row((self._piece(piece) for piece in pieces), self.seq_len)

    def _piece(self, piece: int) -> Document:
        first, length = self._first[piece], self._length[piece]
        inner = slice(first, first + length)
        return self._tokens[inner], None if self._weights is None else self._weights[inner]


def fill_row(pieces: Iterable[Document], seq_len: int) -> dict[str, np.ndarray]:
    """Concatenates pieces to a row `{"tokens" (T+1), "segments" (T+1), "weight" (T)}`."""
    tokens = np.zeros(seq_len + 1, np.int32)
    segments = np.zeros(seq_len + 1, np.int32)
    weight = np.zeros(seq_len, np.float32)
    at = 0
    for segment, (piece, weights) in enumerate(pieces, 1):
        end = at + len(piece)
        tokens[at:end] = piece
        segments[at:end] = segment
        # A piece's first token is not a target: the preceding token is of another document.
        weight[at : end - 1] = 1 if weights is None else weights[1:]
        at = end
    return {"tokens": tokens, "segments": segments, "weight": weight}


def chunk(document: Document, seq_len: int) -> Iterator[tuple[int, int]]:
    """Cuts a document into pieces of at most T + 1 tokens; yields their first token and length.

    Each piece starts with the last token of the previous one, so that every token but the
    document's first is a target exactly once. Pieces whose targets have weight 0 are dropped.
    """
    token, weight = document
    for at in range(0, len(token) - 1, seq_len):
        if weight is None or np.any(weight[at + 1 : at + 1 + seq_len]):
            yield at, min(seq_len + 1, len(token) - at)


def pack(documents: Iterable[Document], seq_len: int, vocab_size: int = 1 << 31) -> Packed:
    """Packs documents into few rows of T + 1 tokens, by best fit decreasing.

    Documents longer than a row are cut into pieces, each with a separate segment; see `chunk`.

    Args:
      documents: tokens (N,), and their weights as targets (N,) or None for 1.
      seq_len: T.
      vocab_size: size of the vocabulary.
    """
    tokens, weights, weighted = TokenStore(vocab_size), bytearray(), False
    first, length = array("q"), array("q")
    dropped = 0
    for token, weight in documents:
        start, count = len(tokens), len(first)
        tokens.add(token)
        if weight is not None and not weighted:
            weights += np.ones(start, np.float32).tobytes()
            weighted = True
        if weighted:
            known = np.ones(len(token), np.float32) if weight is None else weight
            weights += np.asarray(known, np.float32).tobytes()
        for at, size in chunk((token, weight), seq_len):
            first.append(start + at)
            length.append(size)
        dropped += len(first) == count
    length_P = np.array(length, np.int64)
    return Packed(
        tokens.array(),
        np.frombuffer(weights, np.float32) if weighted else None,
        np.array(first, np.int64),
        length_P,
        best_fit(length_P, seq_len + 1),
        seq_len,
        dropped,
    )


def best_fit(length_P: np.ndarray, capacity: int) -> np.ndarray:
    """Assigns pieces to rows by best fit decreasing: longest first, into the fullest row with room.

    Args:
      length_P: tokens of each piece, from 2 to `capacity`.
      capacity: tokens of a row.

    Returns:
      Rows (P,), numbered by their first piece.
    """
    row_P = np.zeros(len(length_P), np.int64)
    rows_with: dict[int, list[int]] = {}  # rows by remaining room
    rooms = 0  # bit n is set if a row has room for n tokens
    count = 0
    for piece in np.argsort(-length_P, kind="stable").tolist():
        need = int(length_P[piece])
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms ^= 1 << room
        else:
            room, row, count = capacity, count, count + 1
        row_P[piece] = row
        if room - need > 1:  # pieces have at least two tokens
            rows_with.setdefault(room - need, []).append(row)
            rooms |= 1 << (room - need)
    _, first = np.unique(row_P, return_index=True)
    number = np.empty(count, np.int64)
    number[np.argsort(first)] = np.arange(count)
    return number[row_P]


def with_special_tokens(text: str, tokenizer: Tokenizer) -> Document:
    """Encodes a text as a separate document: the tokenizer's prefix, the text, the separator.

    Without a prefix it starts with a separator, so that the text's first token is a target too.
    """
    document = TokenStore(tokenizer.size)
    document.add(tokenizer.prefix or (tokenizer.separator,))
    document.add_text(text, tokenizer)
    document.add([tokenizer.separator])
    return document.array(), None
