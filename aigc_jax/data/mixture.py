"""Mixtures of sources by weight.

Shapes: B rows of a batch, R of them that are read.
"""

from collections.abc import Sequence

import numpy as np

from aigc_jax.core.feed import HostBatch
from aigc_jax.data.shuffle import lru
from aigc_jax.data.source import (
    Example,
    Source,
    SupportsRowStreams,
    TrainSource,
    assemble_batch,
    read_batch,
)

MAX_WEIGHT = 10**9  # sum of a mixture's weights: products with it fit into 64 bits


class MixedSource:
    """A mixture or concatenation of several sources.

    Args:
      parts: sources of examples with the same fields and shapes.
      weights: integer weight of each part; () concatenates the parts.
    """

    def __init__(self, parts: Sequence[TrainSource], weights: Sequence[int] = ()):
        self.parts, self.weights = tuple(parts), tuple(weights)
        self._ends = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def first(self, part: int) -> int:
        """Returns the index of a part's first example in the concatenation."""
        return int(self._ends[part])

    def __getitem__(self, index: int) -> Example:
        (part,) = self._part(np.array([index])).tolist()
        return self._indexed(part)[index - self.first(part)]

    def batch(self, index_B: np.ndarray) -> HostBatch:
        def read(part: int, row_R: np.ndarray) -> HostBatch:
            return read_batch(self._indexed(part), index_B[row_R] - self.first(part))

        return assemble_batch(self._part(index_B), read)

    def _indexed(self, part: int) -> Source:
        source = self.parts[part]
        if isinstance(source, SupportsRowStreams):
            raise TypeError(f"part {part} is streamed: its examples have no index")
        return source

    def _part(self, index_B: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ends, index_B, "right") - 1


class MixtureSchedule:
    """Interleaves endless sequences by weight.

    After n places each part has had its share, up to one or two places. Within a batch the places
    are rotated by a random number, which avoids a common period of weights and batch size: no row
    always belongs to the same part.

    Args:
      weights: positive integer weight of each part, with a sum of at most `MAX_WEIGHT`.
      batch_size: places of a batch.
      seed: random seed of the rotations.
    """

    def __init__(self, weights: Sequence[int], batch_size: int, seed: int):
        # A part's share of the places that the parts before it leave.
        self._shares = [(weight, sum(weights[i:])) for i, weight in enumerate(weights)]
        self._batch_size = batch_size
        self._turn = lru(
            lambda batch: int(np.random.default_rng([seed, batch]).integers(batch_size))
        )

    def batch(self, number: int, row_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns parts (R,) and places in the parts' sequences (R,) of rows of a batch."""
        turn = self._turn(number) if len(self._shares) > 1 else 0
        place_R = number * self._batch_size + (row_R + turn) % self._batch_size
        part_R = np.zeros(len(place_R), np.int64)
        open_R = np.ones(len(place_R), bool)  # True until a part has been found
        for part, share in enumerate(self._shares):
            before_R, after_R = _taken(place_R, *share), _taken(place_R + 1, *share)
            mine_R = open_R & (after_R > before_R)
            part_R[mine_R] = part
            place_R = np.where(mine_R, before_R, np.where(open_R, place_R - before_R, place_R))
            open_R &= ~mine_R
        return part_R, place_R

    def taken(self, batches: int) -> list[int]:
        """Returns the number of examples of each part in the first batches."""
        place, found = np.array([batches * self._batch_size]), []
        for share in self._shares:
            mine = _taken(place, *share)
            found.append(int(mine[0]))
            place = place - mine
        return found


def _taken(place_R: np.ndarray, weight: int, of: int) -> np.ndarray:
    """Returns ⌊place · weight / of⌋ without overflow of 64 bits."""
    whole_R, rest_R = np.divmod(place_R, of)
    return whole_R * weight + rest_R * weight // of
