"""A process's rows of a run's batches: from data sets with examples by index, and from streams."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from aigc_jax.data.dataset import HostBatch, Source, from_parts, rows, stacked
from aigc_jax.data.mixture import Mixed
from aigc_jax.data.shuffle import Mixture, lru, order_of
from aigc_jax.modalities.text.streaming import StreamingBatcher, StreamingSource
from aigc_jax.modalities.text.token_windows import TokenWindows

Numbered = tuple[HostBatch, list[int]]  # a batch, and the streamed documents that it was made from


class Batches:
    """Number of a batch → some of its rows.

    A row of examples by index depends on its place alone; one of a stream is the next of its lane,
    so that batches with such rows are to be taken in turn.

    Args:
      source: the examples; several to be mixed.
      batch_size: over all processes.
      seed: of the order.
      row_R: which rows.
      threads: that read the lanes of a batch.

    Attributes:
      lanes: of the streamed parts, by their numbers as strings, which JSON keeps.
    """

    def __init__(
        self,
        source: Source | StreamingSource,
        batch_size: int,
        seed: int,
        row_R: np.ndarray,
        threads: int,
    ):
        mixed = source if isinstance(source, Mixed) else Mixed([source], [1])
        self._mixed, self._row_R, self._all_R = mixed, row_R, np.arange(batch_size)
        self._mixture = Mixture(mixed.weights, batch_size, seed)
        self._readers: dict[int, _Reader] = {}
        self.lanes: dict[str, StreamingBatcher] = {}
        for number, part in enumerate(mixed.parts):
            if isinstance(part, StreamingSource):
                self.lanes[str(number)] = StreamingBatcher(part, seed, row_R, batch_size)
            else:
                self._readers[number] = _Reader(part, seed)
        self._pool = ThreadPoolExecutor(threads) if self.lanes and threads else None

    def __call__(self, number: int) -> Numbered:
        part_R, place_R = self._mixture.batch(number, self._row_R)
        documents: list[int] = []

        def read(part: int, row_r: np.ndarray) -> HostBatch:
            if part in self._readers:
                return self._readers[part](place_R[row_r])
            each = map if self._pool is None else self._pool.map
            found = list(each(self.lanes[str(part)].row, row_r.tolist()))
            documents.extend(i + self._mixed.first(part) for _, seen in found for i in seen)
            return stacked([row for row, _ in found])

        return from_parts(part_R, read), documents

    def taken(self, batches: int) -> list[int]:
        """How many examples of each part the first batches hold, over all processes."""
        return self._mixture.taken(batches)

    def examples(self, number: int) -> list[int]:
        """The numbers of a whole batch's examples; only without streams."""
        part_B, place_B = self._mixture.batch(number, self._all_R)
        example_B = np.empty_like(place_B)
        for part, reader in self._readers.items():
            mine = part_B == part
            example_B[mine] = reader.order(place_B[mine]) + self._mixed.first(part)
        return example_B.tolist()


class _Reader:
    """What makes the batch of the examples at some places (B,) of a data set's order."""

    def __init__(self, source: Source, seed: int):
        self._source, self.order = source, order_of(source, seed)
        if isinstance(source, TokenWindows):
            # They are cut at other places in every epoch: each token is seen once.
            self._offset = lru(
                lambda epoch: np.random.default_rng([seed, epoch]).integers(source.seq_len)
            )

    def __call__(self, place_B: np.ndarray) -> HostBatch:
        example_B = self.order(place_B)
        if not isinstance(self._source, TokenWindows):
            return rows(self._source, example_B)
        epochs = (place_B // self.order.count).tolist()
        offset_B = np.array([self._offset(epoch) for epoch in epochs])
        return self._source.cut(example_B * self._source.seq_len + offset_B)


class SequentialIterator(grain.DatasetIterator):
    """The batches one after another, and where their lanes stand, as Grain's iterators say it."""

    def __init__(self, batches: Batches):
        super().__init__()
        self._batches, self._next = batches, 0

    def __next__(self) -> Numbered:
        batch = self._batches(self._next)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {
            "next": self._next,
            "lanes": {part: lanes.state() for part, lanes in self._batches.lanes.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._next = state["next"]
        for part, lanes in self._batches.lanes.items():
            lanes.restore(state["lanes"][part])
