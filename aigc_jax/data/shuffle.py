"""Which example stands where in an endless shuffled sequence, in memory that does not grow.

A place is a number from 0; what stands there is a function of it alone, so that a position in the
data is a number too, and the processes of a run agree without asking each other.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, overload

import numpy as np
from grain.experimental import index_shuffle

PLACES = 2**53  # as good as endless
HELD = 1 << 20  # numbers of a split that is held; that of more is computed
SMALL = 1 << 16  # numbers whose order is held: to compute places of one so short takes long
MAX_RUN = 10**6  # numbers of which a fixed share is chosen
MAX_WEIGHT = 10**9  # sum of a mixture's weights: products with it fit into 64 bits


class EpochShuffle:
    """The examples of one data set, each once in every epoch.

    Args:
      count: examples.
      seed: of the order; every epoch has its own.
      ends: where files end, if the examples lie in several.
      window: of more examples than this, only about so many are shuffled at a time, in whole files
        of which each epoch has its own order: files are opened once in an epoch.

    Attributes:
      count: the same.
    """

    def __init__(self, count: int, seed: int, ends: np.ndarray | None = None, window: int = PLACES):
        self.count = count
        self._ends, self._window = ends, window
        self._epoch = lru(lambda epoch: self._of_epoch([seed, epoch, count]))

    def _of_epoch(self, seed: list[int]) -> "np.ndarray | Shuffled | Windowed":
        if self._ends is not None and self.count > self._window:
            return Windowed(self._ends, seed, self._window)
        return permutation(self.count, seed)

    def __call__(self, place_B: np.ndarray) -> np.ndarray:
        """The examples (B,) at these places."""
        epoch_B, inside_B = np.divmod(place_B, self.count)
        example_B = np.empty_like(inside_B)
        for epoch in np.unique(epoch_B).tolist():
            here = epoch_B == epoch
            example_B[here] = self._epoch(epoch)[inside_B[here]]
        return example_B


def order_of(source: Any, seed: int) -> EpochShuffle:
    """The order of a source, which says where its files end if they are large."""
    return EpochShuffle(len(source), seed, *getattr(source, "files", ()))


def lru(of_number: Callable[[int], Any]) -> Callable[[int], Any]:
    """Keeps the last few epochs' or batches' values: reader threads can be in two at once."""
    return functools.lru_cache(maxsize=4)(of_number)


class Shuffled(Sequence[int]):
    """The numbers below `count` in an order that is computed place by place, not held.

    Grain's permutation by a block cipher (Black and Rogaway 2002): it needs no memory.

    Args:
      count: how many there are.
      seed: of the order.
      chosen: which places of it; None: all.
    """

    def __init__(self, count: int, seed: int | Sequence[int], chosen: range | None = None):
        self._count, self._chosen = count, range(count) if chosen is None else chosen
        self._key = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> "Sequence[int] | np.ndarray": ...
    def __getitem__(self, index: int | slice | np.ndarray) -> "int | Sequence[int] | np.ndarray":
        if isinstance(index, np.ndarray):
            return np.array([self[i] for i in index.tolist()], np.int64)
        if isinstance(index, slice):
            some = copy.copy(self)
            some._chosen = self._chosen[index]
            return some
        place = self._chosen[int(index)]
        return index_shuffle(place, max_index=self._count - 1, seed=self._key, rounds=4)


def permutation(count: int, seed: int | Sequence[int]) -> "np.ndarray | Shuffled":
    """The numbers below `count` in random order, in memory that is bounded."""
    if count > SMALL:
        return Shuffled(count, seed)
    return np.random.default_rng(seed).permutation(count)


class Windowed:
    """An epoch in which files come in random order, and some at a time are shuffled together.

    It takes memory for the files, not for what they hold.

    Args:
      ends: where each file ends (F,).
      seed: of the order.
      window: examples of a window, to which its last file's are added.
    """

    def __init__(self, ends: np.ndarray, seed: Sequence[int], window: int):
        firsts = np.concatenate([[0], ends[:-1]])
        files = np.random.default_rng(seed).permutation(len(ends))
        self._first = firsts[files]  # of the files in their new order
        length = (ends - firsts)[files]
        self._place = np.cumsum(length) - length  # where each file begins in the new order
        opens = np.diff(self._place // window, prepend=-1) > 0  # files with which a window begins
        self._starts = starts = np.append(self._place[opens], ends[-1])
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


class StratifiedSplit(Sequence[int]):
    """The same share of every short run of numbers: near each other where the numbers are.

    Of each run of `of`, those at the places `chosen` of its own random order; where the last run is
    not whole, none, or all of it.

    Args:
      count: how many numbers there are.
      of: a run.
      chosen: which places.
      rest: whether the last run's numbers are among them, if it is not whole.
      seed: of the orders.
    """

    def __init__(self, count: int, of: int, chosen: range, rest: bool, seed: int):
        self._of, self._chosen, self._seed = of, chosen, seed
        whole = count // of
        self._inside = whole * len(chosen)
        self._range = range(self._inside + (count - whole * of if rest else 0))
        self._after = whole * of - self._inside

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int | slice) -> "int | StratifiedSplit":
        if isinstance(index, slice):
            some = copy.copy(self)
            some._range = self._range[index]
            return some
        place = self._range[int(index)]
        if place >= self._inside:
            return place + self._after
        run, inside = divmod(place, len(self._chosen))
        order = Shuffled(self._of, [self._seed, run])
        return run * self._of + order[self._chosen[inside]]

    def before(self, ends: np.ndarray) -> np.ndarray:
        """About how many of them are below each of some numbers; all, of the last."""
        below = np.minimum(ends // self._of * len(self._chosen), len(self))
        return np.append(below[:-1], len(self))


def split(count: int, fraction: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers below `count` in two: all but a fraction, and a fraction, chosen by seed.

    More than `HELD` are chosen run by run: that takes no memory.
    """
    if count > HELD:
        share = Fraction(fraction).limit_denominator(MAX_RUN)
        times = max(SMALL // share.denominator, 1)  # a computed order must not be short
        of, some = times * share.denominator, times * share.numerator
        return (
            StratifiedSplit(count, of, range(some, of), True, seed),
            StratifiedSplit(count, of, range(some), False, seed),
        )
    order = np.random.default_rng(seed).permutation(count)
    held, rest = np.split(order, [round(fraction * count)])
    return rest, held


class Mixture:
    """Whose turn it is at each place of several endless sequences that are mixed by weight.

    After n places each part has had its share of them, to within one or two. In a batch the places
    are rotated by a random number, so that weights and batch size have no pattern in common: no row
    of the batches belongs to one part for ever.

    Args:
      weights: of the parts: whole numbers, more than 0, whose sum is at most `MAX_WEIGHT`.
      batch_size: places of a batch.
      seed: of the rotations.
    """

    def __init__(self, weights: Sequence[int], batch_size: int, seed: int):
        # A part's share of what the parts before it leave.
        self._shares = [(weight, sum(weights[i:])) for i, weight in enumerate(weights)]
        self._batch_size = batch_size
        self._turn = lru(
            lambda batch: int(np.random.default_rng([seed, batch]).integers(batch_size))
        )

    def batch(self, number: int, row_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The parts (R,) of some rows of a batch, and their places (R,) in the parts' sequences."""
        turn = self._turn(number) if len(self._shares) > 1 else 0
        place_R = number * self._batch_size + (row_R + turn) % self._batch_size
        part_R = np.zeros(len(place_R), np.int64)
        open_R = np.ones(len(place_R), bool)  # no part has been found yet
        for part, share in enumerate(self._shares):
            before_R, after_R = _taken(place_R, *share), _taken(place_R + 1, *share)
            mine_R = open_R & (after_R > before_R)
            part_R[mine_R] = part
            place_R = np.where(mine_R, before_R, np.where(open_R, place_R - before_R, place_R))
            open_R &= ~mine_R
        return part_R, place_R

    def taken(self, batches: int) -> list[int]:
        """How many examples of each part the first batches hold."""
        place, found = np.array([batches * self._batch_size]), []
        for share in self._shares:
            mine = _taken(place, *share)
            found.append(int(mine[0]))
            place = place - mine
        return found


def _taken(place_R: np.ndarray, weight: int, of: int) -> np.ndarray:
    """⌊place · weight / of⌋, without products that 64 bits cannot hold."""
    whole_R, rest_R = np.divmod(place_R, of)
    return whole_R * weight + rest_R * weight // of
