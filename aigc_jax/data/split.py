"""Splits a data set into training and held-out examples, in constant memory."""

import copy
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar, cast, overload

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError
from aigc_jax.data.shuffle import SMALL, IndexShuffle

T = TypeVar("T", bound=Sequence)

MAX_IN_MEMORY = 1 << 20  # examples up to which a split is a list; larger ones are computed
MAX_STRATUM = 10**6  # maximum examples of a stratum


class StratifiedSplit(Sequence[int]):
    """A random split that takes the same share of every stratum, a short range of indices.

    Indices that are close to each other are close in the split, too: files are read in order.

    Args:
      count: number of examples.
      size: examples of a stratum.
      chosen: places of a stratum's random order that belong to the split.
      with_rest: whether an incomplete last stratum belongs to the split, or not at all.
      seed: random seed.
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
        """Returns about how many indices of the split are below each end; all for the last."""
        below = np.minimum(ends // self._size * len(self._chosen), len(self))
        return np.append(below[:-1], len(self))


def random_split(count: int, fraction: float, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Splits the integers below `count` at random into (1 − fraction) and fraction of them.

    Beyond `MAX_IN_MEMORY` the split is stratified, which needs no memory.
    """
    if count > MAX_IN_MEMORY:
        share = Fraction(fraction).limit_denominator(MAX_STRATUM)
        times = max(SMALL // share.denominator, 1)  # IndexShuffle is slow for short permutations
        size, held = times * share.denominator, times * share.numerator
        return (
            StratifiedSplit(count, size, range(held, size), True, seed),
            StratifiedSplit(count, size, range(held), False, seed),
        )
    order = np.random.default_rng(seed).permutation(count)
    held_out, train = np.split(order, [round(fraction * count)])
    return cast(Sequence[int], train), cast(Sequence[int], held_out)


def held_out_split(splits: Mapping[str, Any]) -> str | None:
    """Returns the name of a source's held-out split: "validation", else "test", else None."""
    return next((s for s in ("validation", "test") if splits.get(s)), None)


def hold_out(count: int, config: Data, unit: str) -> tuple[Sequence[int], Sequence[int]]:
    """Returns indices of training and of held-out examples: a random fraction, or the last ones.

    Args:
      count: number of examples.
      config: the section `data`.
      unit: name of the examples, for messages: "images".

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
    """Returns the first `data.max_train_examples` training examples, or all of them."""
    return cast(T, examples[: config.max_train_examples or len(examples)])


def file_ends(ends: np.ndarray | None, indices: Sequence[int], config: Data) -> np.ndarray | None:
    """Returns the ends of files among the examples chosen by `hold_out` or `limit_train`.

    Args:
      ends: number of examples up to the end of each file, (F,), if they are stored in files.
      indices: the chosen examples.
      config: the section `data`.

    Returns:
      The number of chosen examples up to the end of each file; None if there are few enough for a
      full shuffle.
    """
    if ends is None or len(indices) <= config.shuffle_window:
        return None
    if isinstance(indices, StratifiedSplit):
        return indices.count_below(ends)
    return np.append(ends[ends < len(indices)], len(indices))  # the first examples were chosen
