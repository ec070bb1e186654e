"""Streaming: rows of documents that do not fit into memory.

The first token of row k depends on the lengths of all documents before it, which are unknown until
they are read. Therefore each row of a batch has its own sequence of documents: row stream b of B
takes the documents at the places b, b + B, b + 2B, … of the shuffled order. A process reads only
the documents of its own rows, rows are the same under any number of processes, and the position of
a row stream is a few numbers. Each document is in one row stream per epoch.

Shapes: T targets of a row, S numbers of a row stream's position.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.data.shuffle import EpochShuffle
from aigc_jax.data.source import epoch_shuffle
from aigc_jax.modalities.text.packing import chunk, fill_row
from aigc_jax.modalities.text.token_store import Document
from aigc_jax.modalities.text.token_windows import window_example

LOOKAHEAD = 12  # candidate pieces of `BestFitPack`
MAX_EMPTY_DOCS = 10_000  # consecutive documents without a target after which a row stream fails
NONE = -1  # placeholder for a missing piece in a position


@dataclasses.dataclass(frozen=True)
class StreamingSource:
    """Source of streamed documents.

    Attributes:
      document: returns the tokens and target weights of a document, by index.
      count: number of documents.
      seq_len: T.
      packing: class of the row streams: `ConcatThenSplit` or `BestFitPack`.
      file_ends: number of documents up to the end of each file, (F,); None for a full shuffle.
      shuffle_window: approximate number of documents that are shuffled together.
    """

    document: Callable[[int], Document]
    count: int
    seq_len: int
    packing: "type[RowStream]"
    file_ends: np.ndarray | None = None
    shuffle_window: int = 0

    def __len__(self) -> int:
        return self.count

    def row_streams(self, seed: int, row_R: np.ndarray, batch_size: int) -> "StreamingBatcher":
        """Returns the row streams of these rows of every batch."""
        return StreamingBatcher(self, seed, row_R, batch_size)


class RowStream:
    """Endless sequence of rows of documents.

    Args:
      source: the documents.
      order: their shuffled order.
      first, every: the stream takes the documents at the places first + n · every.

    Attributes:
      doc_ids: indices of the documents in the last row.
    """

    state_size: ClassVar[int]

    def __init__(self, source: StreamingSource, order: EpochShuffle, first: int, every: int):
        self._source, self._order = source, order
        self._first, self._every = first, every
        self._last: tuple[int, Document] | None = None
        self._n, self._at = 0, 0  # the next document, and the first of its tokens to use
        self.doc_ids: list[int] = []

    def row(self) -> dict[str, np.ndarray]:
        """Returns the next row.

        Raises:
          UserError: if too many consecutive documents have no target.
        """
        raise NotImplementedError

    def state(self) -> list[int]:
        """Returns the position, `state_size` numbers."""
        raise NotImplementedError

    def restore(self, state: list[int]) -> None:
        """Continues at a position."""
        raise NotImplementedError

    def _doc_id(self, n: int) -> int:
        """Returns the index of the stream's n-th document."""
        return int(self._order(np.array([self._first + n * self._every]))[0])

    def _document(self, n: int) -> Document:
        """Reads the stream's n-th document; caches the last one, as it may fill many rows."""
        if self._last is None or self._last[0] != n:
            self._last = n, self._source.document(self._doc_id(n))
        return self._last[1]

    def _check_empty(self, empty: int) -> None:
        if empty > MAX_EMPTY_DOCS:
            raise UserError(
                f"{MAX_EMPTY_DOCS} consecutive documents have no target token: check the data set"
            )


class ConcatThenSplit(RowStream):
    """Concatenates documents and cuts them into windows of T + 1 tokens.

    Each window starts with the last token of the previous one. The position is the next document
    and the first of its tokens to use.
    """

    state_size = 2

    def row(self) -> dict[str, np.ndarray]:
        room, parts, self.doc_ids, empty = self._source.seq_len + 1, [], [], 0
        end = self.state()
        while room:
            token, _ = self._document(self._n)
            part = token[self._at : self._at + room]
            room -= len(part)
            parts.append(part)
            if len(part):
                self.doc_ids.append(self._doc_id(self._n))
                end = [self._n, self._at + len(part) - 1]
            empty = 0 if len(part) else empty + 1
            self._check_empty(empty)
            self._at += len(part)
            if room:
                self._n, self._at = self._n + 1, 0
        self.restore(end)  # its last token is the first of the next row
        return window_example(np.concatenate(parts))

    def state(self) -> list[int]:
        return [self._n, self._at]

    def restore(self, state: list[int]) -> None:
        self._n, self._at = state


class BestFitPack(RowStream):
    """Packs complete documents: the oldest waiting piece, then the best fits of the others.

    Considers a fixed number of pieces, whereas `packing.best_fit` considers all. The position is
    the next document to cut and the first of its tokens to use, and the same of every waiting
    piece.
    """

    state_size = 2 + 2 * LOOKAHEAD

    def __init__(self, source: StreamingSource, order: EpochShuffle, first: int, every: int):
        super().__init__(source, order, first, every)
        self._waiting: list[_Piece] = []

    def row(self) -> dict[str, np.ndarray]:
        pieces: list[Document] = []
        room, self.doc_ids = self._source.seq_len + 1, []
        while True:
            self._refill()
            fitting = [i for i, piece in enumerate(self._waiting) if piece.size <= room]
            if not fitting:
                return fill_row(pieces, self._source.seq_len)
            best = 0 if not pieces else max(fitting, key=lambda i: (self._waiting[i].size, -i))
            piece = self._waiting.pop(best)
            self.doc_ids.append(self._doc_id(piece.n))
            pieces.append(piece.tokens)
            room -= piece.size

    def _refill(self) -> None:
        empty = 0
        while len(self._waiting) < LOOKAHEAD:
            document = self._document(self._n)
            pieces = chunk(document, self._source.seq_len)
            left = [(at, size) for at, size in pieces if at >= self._at]
            for at, size in left[: LOOKAHEAD - len(self._waiting)]:
                self._waiting.append(_Piece.of(document, self._n, at, size))
                self._at = at + 1
            empty = 0 if left else empty + 1
            self._check_empty(empty)
            if len(self._waiting) < LOOKAHEAD:
                self._n, self._at = self._n + 1, 0

    def state(self) -> list[int]:
        waiting = [number for piece in self._waiting for number in (piece.n, piece.at)]
        return [self._n, self._at, *waiting, *[NONE] * (self.state_size - 2 - len(waiting))]

    def restore(self, state: list[int]) -> None:
        self._waiting = []
        for n, at in zip(state[2::2], state[3::2], strict=True):
            if n != NONE:
                document = self._document(n)
                size = min(self._source.seq_len + 1, len(document[0]) - at)
                self._waiting.append(_Piece.of(document, n, at, size))
        self._n, self._at = state[:2]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A piece of a document.

    Attributes:
      n: index of the document in the row stream.
      at: first token of the piece in the document.
      tokens: tokens and weights of the piece.
    """

    n: int
    at: int
    tokens: Document

    @classmethod
    def of(cls, document: Document, n: int, at: int, size: int) -> "_Piece":
        token, weight = document
        inner = slice(at, at + size)
        # Copied, so that a piece does not keep a long document in memory.
        copy = token[inner].copy(), None if weight is None else weight[inner].copy()
        return cls(n, at, copy)

    @property
    def size(self) -> int:
        return len(self.tokens[0])


class StreamingBatcher:
    """Row streams of a process's rows.

    Args:
      source: the documents.
      seed: random seed of their order.
      row_R: indices of the rows in every batch.
      batch_size: rows of a batch over all processes.
    """

    def __init__(self, source: StreamingSource, seed: int, row_R: np.ndarray, batch_size: int):
        order = epoch_shuffle(source, seed)
        self._state_size = source.packing.state_size
        self._streams = [source.packing(source, order, row, batch_size) for row in row_R.tolist()]

    def row(self, index: int) -> tuple[dict[str, np.ndarray], list[int]]:
        """Returns the next row of a row stream, and the indices of the documents in it."""
        stream = self._streams[index]
        return stream.row(), stream.doc_ids

    def state(self) -> np.ndarray:
        """Returns the positions (R, S)."""
        states = [stream.state() for stream in self._streams]
        return np.array(states, np.int32).reshape(-1, self._state_size)

    def restore(self, state_RS: np.ndarray) -> None:
        """Continues at positions (R, S)."""
        for stream, state in zip(self._streams, state_RS.tolist(), strict=True):
            stream.restore(state)
