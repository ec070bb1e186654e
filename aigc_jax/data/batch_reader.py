"""BatchReader: this process's rows of batch k.

B is the number of rows of a batch over all processes, R that of this process's rows.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from aigc_jax.core.feed import HostBatch
from aigc_jax.data.mixture import MixedSource, MixtureSchedule
from aigc_jax.data.source import (
    RowStreams,
    Source,
    SupportsEpochBatch,
    SupportsRowStreams,
    TrainSource,
    assemble_batch,
    epoch_shuffle,
    read_batch,
    stack_examples,
)

NumberedBatch = tuple[HostBatch, list[int]]  # a batch and the ids of streamed documents in it


class BatchReader:
    """Assembles this process's rows of a batch.

    A row from a random-access source depends only on its place in the shuffled order. A row of
    streamed documents is the next one of its stream, so such batches must be made in sequence.

    Args:
      source: the examples; a `MixedSource` draws from its parts by weight.
      batch_size: B.
      seed: random seed of the order.
      row_R: indices of the rows to make, of B.
      threads: threads that read the row streams.

    Attributes:
      streams: row streams of streamed parts, by the part's index as a string (a JSON key).
    """

    def __init__(
        self, source: TrainSource, batch_size: int, seed: int, row_R: np.ndarray, threads: int
    ):
        mixed = source if isinstance(source, MixedSource) else MixedSource([source], [1])
        self._mixed, self._row_R, self._all_R = mixed, row_R, np.arange(batch_size)
        self._schedule = MixtureSchedule(mixed.weights, batch_size, seed)
        self._readers: dict[int, _ShuffledReader] = {}
        self.streams: dict[str, RowStreams] = {}
        for number, part in enumerate(mixed.parts):
            if isinstance(part, SupportsRowStreams):
                self.streams[str(number)] = part.row_streams(seed, row_R, batch_size)
            else:
                self._readers[number] = _ShuffledReader(part, seed)
        self._pool = ThreadPoolExecutor(threads) if self.streams and threads else None

    def __call__(self, number: int) -> NumberedBatch:
        part_R, place_R = self._schedule.batch(number, self._row_R)
        documents: list[int] = []

        def read(part: int, row_r: np.ndarray) -> HostBatch:
            if part in self._readers:
                return self._readers[part](place_R[row_r])
            each = map if self._pool is None else self._pool.map
            found = list(each(self.streams[str(part)].row, row_r.tolist()))
            first = self._mixed.first(part)
            documents.extend(i + first for _, doc_ids in found for i in doc_ids)
            return stack_examples([row for row, _ in found])

        return assemble_batch(part_R, read), documents

    def taken(self, batches: int) -> list[int]:
        """Returns the number of examples of each part in the first batches, over all processes."""
        return self._schedule.taken(batches)

    def example_ids(self, number: int) -> list[int]:
        """Returns indices of a batch's examples, over all processes; without streams only."""
        part_B, place_B = self._schedule.batch(number, self._all_R)
        example_B = np.empty_like(place_B)
        for part, reader in self._readers.items():
            mine = part_B == part
            example_B[mine] = reader.order(place_B[mine]) + self._mixed.first(part)
        return example_B.tolist()


class _ShuffledReader:
    """Reads the examples at places (B,) of a source's shuffled order."""

    def __init__(self, source: Source, seed: int):
        self._source, self._seed, self.order = source, seed, epoch_shuffle(source, seed)

    def __call__(self, place_B: np.ndarray) -> HostBatch:
        example_B = self.order(place_B)
        if isinstance(self._source, SupportsEpochBatch):
            return self._source.epoch_batch(example_B, place_B // self.order.count, self._seed)
        return read_batch(self._source, example_B)
