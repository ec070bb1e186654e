"""Rows of documents that are read as they are needed: more than memory holds.

Where row k begins depends on how long all documents before it are, which nobody knows without
reading them. So there is not one sequence of documents but one for each row of a batch, its lane:
lane b of B takes the documents at the places b, b + B, b + 2B, … of the shuffled order. A process
reads the documents of its own rows only, the rows are the same under any number of processes, and
where a lane stands is a few numbers, whatever it has read. In every epoch of the order each
document stands in one lane.

T is the number of tokens that a row predicts.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.data.shuffle import EpochShuffle, order_of
from aigc_jax.modalities.text.packing import Document, cuts, filled

PENDING = 12  # pieces from which a lane chooses what fits into a row
FUTILE = 10_000  # documents without a target after which a lane gives up
NONE = -1  # in a state: no piece


@dataclasses.dataclass(frozen=True)
class StreamingSource:
    """Documents that are not in memory, to be made into rows.

    Attributes:
      document: number → its tokens, and their weights as targets.
      count: how many there are.
      seq_len: T.
      files: `ends` and `window` of their order, if they lie in large files.
      joined: rows are windows of the documents in one line, a document beginning where the one
        before ends; otherwise documents stand side by side as whole as they can, in segments.
    """

    document: Callable[[int], Document]
    count: int
    seq_len: int
    files: tuple[np.ndarray, int] | tuple[()] = ()
    joined: bool = False

    def __len__(self) -> int:
        return self.count


class RowStream:
    """The rows of one lane.

    Args:
      source: the documents.
      order: in which they come.
      first, every: the lane's documents stand at the places first + n · every.

    Attributes:
      seen: the numbers of the documents that the last row was made from.
    """

    def __init__(self, source: StreamingSource, order: EpochShuffle, first: int, every: int):
        self._source, self._order = source, order
        self._first, self._every = first, every
        self._last: tuple[int, Document] | None = None
        self.seen: list[int] = []

    def _number(self, n: int) -> int:
        """Which document the lane's n-th is."""
        return int(self._order(np.array([self._first + n * self._every]))[0])

    def _document(self, n: int) -> Document:
        """The lane's n-th document; a long one serves several rows."""
        if self._last is None or self._last[0] != n:
            self._last = n, self._source.document(self._number(n))
        return self._last[1]

    def _give_up(self) -> None:
        raise UserError(
            f"{FUTILE} documents in a row have no token that could be learned: look at the data set"
        )


class JoinedLane(RowStream):
    """Windows of T + 1 tokens of documents in one line; each begins with the last one's last token.

    Its state: which document comes next, and from which of its tokens on.
    """

    width = 2

    def __init__(self, *args: object):
        super().__init__(*args)
        self._n, self._at = 0, 0

    def row(self) -> dict[str, np.ndarray]:
        length, parts, self.seen, futile = self._source.seq_len + 1, [], [], 0
        while length:
            token, _ = self._document(self._n)
            part = token[self._at : self._at + length]
            length -= len(part)
            parts.append(part)
            if len(part):
                self.seen.append(self._number(self._n))
                end = self._n, self._at + len(part) - 1
            futile = 0 if len(part) else futile + 1
            if futile > FUTILE:
                self._give_up()
            self._at += len(part)
            if length:
                self._n, self._at = self._n + 1, 0
        self._n, self._at = end  # its last token is the next one's first
        tokens = np.concatenate(parts).astype(np.int32)
        return {"tokens": tokens, "weight": np.ones(self._source.seq_len, np.float32)}

    def state(self) -> list[int]:
        return [self._n, self._at]

    def restore(self, state: list[int]) -> None:
        self._n, self._at = state


class PackedLane(RowStream):
    """Documents side by side: the piece that has waited longest, then what fits best of the next.

    The lane looks a fixed number of pieces ahead. Its state: the document to cut next, the place
    in it, and the same of every piece that waits.
    """

    width = 2 + 2 * PENDING

    def __init__(self, *args: object):
        super().__init__(*args)
        self._n, self._at = 0, 0
        self._pending: list[tuple[int, int, Document]] = []  # document, place in it, piece

    def row(self) -> dict[str, np.ndarray]:
        pieces, room, self.seen = [], self._source.seq_len + 1, []
        while True:
            self._refill()
            fitting = [i for i, waiting in enumerate(self._pending) if _size(waiting) <= room]
            if not fitting:
                return filled(pieces, self._source.seq_len)
            best = 0 if not pieces else max(fitting, key=lambda i: (_size(self._pending[i]), -i))
            n, _, piece = self._pending.pop(best)
            self.seen.append(self._number(n))
            pieces.append(piece)
            room -= len(piece[0])

    def _refill(self) -> None:
        futile = 0
        while len(self._pending) < PENDING:
            document = self._document(self._n)
            left = [(at, size) for at, size in cuts(document, self._source.seq_len)
                    if at >= self._at]  # fmt: skip
            for at, size in left[: PENDING - len(self._pending)]:
                self._pending.append((self._n, at, _piece(document, at, size)))
                self._at = at + 1
            futile = 0 if left else futile + 1
            if futile > FUTILE:
                self._give_up()
            if len(self._pending) < PENDING:
                self._n, self._at = self._n + 1, 0

    def state(self) -> list[int]:
        waiting = [number for n, at, _ in self._pending for number in (n, at)]
        return [self._n, self._at, *waiting, *[NONE] * (self.width - 2 - len(waiting))]

    def restore(self, state: list[int]) -> None:
        self._pending = []
        for n, at in zip(state[2::2], state[3::2], strict=True):
            if n != NONE:
                document = self._document(n)
                size = min(self._source.seq_len + 1, len(document[0]) - at)
                self._pending.append((n, at, _piece(document, at, size)))
        self._n, self._at = state[:2]


def _piece(document: Document, at: int, size: int) -> Document:
    token, weight = document
    inner = slice(at, at + size)
    # Copied: a piece of a long document must not keep all of it in memory.
    return token[inner].copy(), None if weight is None else weight[inner].copy()


def _size(waiting: tuple[int, int, Document]) -> int:
    return len(waiting[2][0])


class StreamingBatcher:
    """The lanes of some rows of the batches.

    Args:
      source: the documents.
      seed: of their order.
      row_R: which rows.
      batch_size: over all processes.
    """

    def __init__(self, source: StreamingSource, seed: int, row_R: np.ndarray, batch_size: int):
        order = order_of(source, seed)
        kind = JoinedLane if source.joined else PackedLane
        self._width = kind.width
        self._lanes = [kind(source, order, row, batch_size) for row in row_R.tolist()]

    def row(self, index: int) -> tuple[dict[str, np.ndarray], list[int]]:
        """The next row of a lane, and the documents that it was made from."""
        lane = self._lanes[index]
        return lane.row(), lane.seen

    def state(self) -> np.ndarray:
        """Where the lanes stand (R, S)."""
        return np.array([lane.state() for lane in self._lanes], np.int32).reshape(-1, self._width)

    def restore(self, state_RS: np.ndarray) -> None:
        for lane, state in zip(self._lanes, state_RS.tolist(), strict=True):
            lane.restore(state)
