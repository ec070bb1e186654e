"""Order of an endless shuffled sequence of examples, in constant memory.

A place is an index from 0 in that sequence. The example at a place is a function of the place and
the seed alone: a position in the data is one number, and processes agree on the order without
communication. Shapes: B places looked up together.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

import numpy as np
from grain.experimental import index_shuffle

V = TypeVar("V")

PLACES = 2**53  # length of an "endless" sequence
SMALL = 1 << 16  # up to this length a permutation is stored: computing a short one is slow


class EpochShuffle:
    """Shuffles a data set: every epoch has each example once, in a different order.

    Args:
      count: number of examples.
      seed: random seed of the order.
      file_ends: number of examples up to the end of each file, if they are stored in files.
      window: if there are files and more examples than this, files with about this many examples
        are shuffled together, so that each file is opened once in an epoch.

    Attributes:
      count: number of examples.
    """

    def __init__(
        self, count: int, seed: int, file_ends: np.ndarray | None = None, window: int = PLACES
    ):
        self.count = count
        self._file_ends, self._window = file_ends, window
        self._epoch = lru(lambda epoch: self._epoch_order([seed, epoch, count]))

    def _epoch_order(self, seed: list[int]) -> "np.ndarray | IndexShuffle | WindowShuffle":
        if self._file_ends is not None and self.count > self._window:
            return WindowShuffle(self._file_ends, seed, self._window)
        return permutation(self.count, seed)

    def __call__(self, place_B: np.ndarray) -> np.ndarray:
        """Returns the examples (B,) at these places."""
        epoch_B, inside_B = np.divmod(place_B, self.count)
        example_B = np.empty_like(inside_B)
        for epoch in np.unique(epoch_B).tolist():
            here = epoch_B == epoch
            example_B[here] = self._epoch(epoch)[inside_B[here]]
        return example_B


def lru(function: Callable[[int], V]) -> Callable[[int], V]:
    """Caches the last few values, since reader threads can be in two epochs or batches at once."""
    return functools.lru_cache(maxsize=4)(function)


class IndexShuffle(Sequence[int]):
    """A permutation of the integers below `count`, computed place by place instead of stored.

    Uses Grain's permutation by a block cipher (Black and Rogaway 2002), which needs no memory.

    Args:
      count: length of the permutation.
      seed: random seed.
      chosen: places to keep; all by default.
    """

    def __init__(self, count: int, seed: int | Sequence[int], chosen: range | None = None):
        self._count, self._chosen = count, range(count) if chosen is None else chosen
        self._key = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> "IndexShuffle": ...
    @overload
    def __getitem__(self, index: np.ndarray) -> np.ndarray: ...
    def __getitem__(self, index: int | slice | np.ndarray) -> "int | IndexShuffle | np.ndarray":
        if isinstance(index, np.ndarray):
            return np.array([self[i] for i in index.tolist()], np.int64)
        if isinstance(index, slice):
            some = copy.copy(self)
            some._chosen = self._chosen[index]
            return some
        place = self._chosen[int(index)]
        return index_shuffle(place, max_index=self._count - 1, seed=self._key, rounds=4)


def permutation(count: int, seed: int | Sequence[int]) -> np.ndarray | IndexShuffle:
    """Returns a random permutation of the integers below `count`, in bounded memory."""
    if count > SMALL:
        return IndexShuffle(count, seed)
    return np.random.default_rng(seed).permutation(count)


class WindowShuffle:
    """Shuffles the files, then the examples within windows of a few consecutive files.

    Memory grows with the number of files, not of examples.

    Args:
      file_ends: number of examples up to the end of each file, (F,).
      seed: random seed of the order.
      window: minimum number of examples in a window, which ends with a file.
    """

    def __init__(self, file_ends: np.ndarray, seed: Sequence[int], window: int):
        firsts = np.concatenate([[0], file_ends[:-1]])
        files = np.random.default_rng(seed).permutation(len(file_ends))
        self._first = firsts[files]  # in the shuffled order of files
        length = (file_ends - firsts)[files]
        self._place = np.cumsum(length) - length  # first place of each file in the shuffled order
        # Whether a file is the first of a window.
        opens = np.diff(self._place // window, prepend=-1) > 0
        self._starts = starts = np.append(self._place[opens], file_ends[-1])
        self._window = lru(
            lambda window: permutation(int(starts[window + 1] - starts[window]), [*seed, window])
        )

    def __getitem__(self, place_B: np.ndarray) -> np.ndarray:
        window_B = np.searchsorted(self._starts, place_B, "right") - 1
        mixed_B = np.empty_like(place_B)
        for window in np.unique(window_B).tolist():
            here, start = window_B == window, self._starts[window]
            mixed_B[here] = start + self._window(window)[place_B[here] - start]
        file_B = np.searchsorted(self._place, mixed_B, "right") - 1
        return self._first[file_B] + mixed_B - self._place[file_B]
