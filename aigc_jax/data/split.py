"""Training and held-out examples of one data set, in memory that does not grow with it."""

import copy
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar, cast, overload

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError
from aigc_jax.data.shuffle import SMALL, IndexShuffle

T = TypeVar("T", bound=Sequence)

MAX_IN_MEMORY = 1 << 20  # numbers up to which a split is a list; that of more is computed
MAX_STRATUM = 10**6  # numbers of which a fixed share is chosen


class StratifiedSplit(Sequence[int]):
    """The same share of every short run of numbers ("stratum"), chosen at random within each.

    So numbers that are close to each other are close in the split, too: files are read in order.

    Args:
      count: how many numbers there are.
      size: numbers of a stratum.
      chosen: the places of its random order that belong to the split.
      with_rest: whether an incomplete last stratum belongs to it as a whole, or not at all.
      seed: of the random orders.
    """

    def __init__(self, count: int, size: int, chosen: range, with_rest: bool, seed: int):
        self._size, self._chosen, self._seed = size, chosen, seed
        strata = count // size
        self._inside = strata * len(chosen)
        self._range = range(self._inside + (count - strata * size if with_rest else 0))
        self._shift = strata * size - self._inside

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> "StratifiedSplit": ...
    def __getitem__(self, index: int | slice) -> "int | StratifiedSplit":
        if isinstance(index, slice):
            some = copy.copy(self)
            some._range = self._range[index]
            return some
        place = self._range[int(index)]
        if place >= self._inside:
            return place + self._shift
        stratum, inside = divmod(place, len(self._chosen))
        order = IndexShuffle(self._size, [self._seed, stratum])
        return stratum * self._size + order[self._chosen[inside]]

    def count_below(self, ends: np.ndarray) -> np.ndarray:
        """About how many numbers of the split are below each of `ends`; all, below the last."""
        below = np.minimum(ends // self._size * len(self._chosen), len(self))
        return np.append(below[:-1], len(self))


def random_split(count: int, fraction: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Splits the numbers below `count` into all but a fraction of them, and that fraction.

    Of more than `MAX_IN_MEMORY` numbers the fraction is taken stratum by stratum, which needs no
    memory.
    """
    if count > MAX_IN_MEMORY:
        share = Fraction(fraction).limit_denominator(MAX_STRATUM)
        times = max(SMALL // share.denominator, 1)  # a computed order must not be short
        size, held = times * share.denominator, times * share.numerator
        return (
            StratifiedSplit(count, size, range(held, size), True, seed),
            StratifiedSplit(count, size, range(held), False, seed),
        )
    order = np.random.default_rng(seed).permutation(count)
    held_out, train = np.split(order, [round(fraction * count)])
    return cast(Sequence[int], train), cast(Sequence[int], held_out)


def held_out_split(splits: Mapping[str, Any]) -> str | None:
    """The name of a source's own held-out split: "validation", else "test", else None."""
    return next((s for s in ("validation", "test") if splits.get(s)), None)


def hold_out(count: int, config: Data, unit: str) -> tuple[Sequence[int], Sequence[int]]:
    """Indices to train on and held-out ones: a random fraction, or the last ones.

    Args:
      count: number of examples.
      config: the section `data`.
      unit: the examples, for messages: "images".

    Raises:
      UserError: if either would be empty.
    """
    fraction = config.validation_fraction
    train: Sequence[int]
    held_out: Sequence[int]
    if config.split == "tail":
        end = int(count * (1 - fraction))
        train, held_out = range(end), range(end, count)
    else:
        train, held_out = random_split(count, fraction, config.split_seed)
    if not len(train) or not len(held_out):
        raise UserError(
            f"data.validation_fraction={fraction} of {count} {unit} leaves nothing to train on or"
            " nothing to hold out"
        )
    return train, held_out


def limit_train(examples: T, config: Data) -> T:
    """The first `data.max_train_examples` of the training examples, or all of them."""
    return cast(T, examples[: config.max_train_examples or len(examples)])


def file_ends(ends: np.ndarray | None, indices: Sequence[int], config: Data) -> np.ndarray | None:
    """Where files end among examples that `hold_out` or `limit_train` chose.

    Args:
      ends: number of examples up to the end of each file, (F,), if they are stored in files.
      indices: the chosen examples.
      config: the section `data`.

    Returns:
      The number of chosen examples up to the end of each file; None if they are so few that they
      are shuffled all together.
    """
    if ends is None or len(indices) <= config.shuffle_window:
        return None
    if isinstance(indices, StratifiedSplit):
        return indices.count_below(ends)
    return np.append(ends[ends < len(indices)], len(indices))  # the first of them
