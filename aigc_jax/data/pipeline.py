"""From sources to batches: Grain, with a position that can be saved.

Each process reads only its share. Batch k of the run is the same examples in the same order under
any number of processes: process p of P reads rows p·B/P … (p+1)·B/P − 1 of it.
"""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from aigc_jax.data.sources import Source
from aigc_jax.data.text import Windows
from aigc_jax.errors import UserError

HostBatch = dict[str, np.ndarray]


def local_size(batch_size: int, processes: int) -> int:
    """One process's rows of a batch."""
    if batch_size % processes:
        raise UserError(
            f"a batch of {batch_size} must be divisible by the {processes} processes: change"
            " data.batch_size or eval.batch_size"
        )
    return batch_size // processes


class TrainIterator:
    """Endless shuffled batches of this process, and how far they have come.

    Args:
      source: the training examples.
      batch_size: examples of a step over all processes.
      seed: of the order; every epoch has its own.
      threads: reader threads.
      alone: all batches whole for this process, for work that it does without the others.
    """

    def __init__(
        self, source: Source, batch_size: int, seed: int, threads: int = 4, alone: bool = False
    ):
        process, processes = (0, 1) if alone else (jax.process_index(), jax.process_count())
        local = local_size(batch_size, processes)
        # As good as endless; Grain cannot take the length of an endless one in batches of 1.
        epochs = 2**53 // max(len(source), 1)

        def shuffled(examples: Any) -> grain.MapDataset:
            return grain.MapDataset.source(examples).seed(seed).shuffle().repeat(epochs)

        if isinstance(source, Windows):
            data = shuffled(range(len(source))).map_with_index(_Cut(source, seed))
        else:
            data = shuffled(source)
        data = data.batch(local)[process::processes]
        self._ids = shuffled(range(len(source))).batch(batch_size)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * max(threads, 1))
        self._iterator = iter(data.to_iter_dataset(options))
        self.batch_size = batch_size
        self.taken = 0

    def __next__(self) -> HostBatch:
        batch = next(self._iterator)
        self.taken += 1
        return batch

    def position(self) -> dict[str, Any]:
        """Where the data stands, as plain values: the same for every process."""
        return {"examples": self.taken * self.batch_size, "grain": self._iterator.get_state()}

    def seek(self, position: dict[str, Any]) -> None:
        """Continues after the examples that `position` counts."""
        self.seek_batch(position["examples"] // self.batch_size)

    def seek_batch(self, taken: int) -> None:
        """Continues after so many batches."""
        self.taken = taken
        self._iterator.set_state({**self._iterator.get_state(), "next_index": taken})

    def example_ids(self, batch: int) -> list[int]:
        """Which of the source's examples make up a batch of the run, counted from 0."""
        return np.asarray(self._ids[batch]).tolist()


class _Cut(grain.transforms.MapWithIndex):
    """Cuts a stream into windows, at other places in every epoch: each token is seen once."""

    def __init__(self, windows: Windows, seed: int):
        self._windows, self._seed = windows, seed

    def map_with_index(self, index: int, window: int) -> HostBatch:
        stream, length = self._windows.stream, self._windows.seq_len
        epoch = index // len(self._windows)
        offset = np.random.default_rng([self._seed, epoch]).integers(length)
        start = min(window * length + offset, len(stream) - length - 1)
        tokens = stream[start : start + length + 1].astype(np.int32)
        return {"tokens": tokens, "weight": np.ones(length, np.float32)}


def num_batches(source: Source, batch_size: int, limit: int = 0) -> int:
    """How many batches `eval_batches` makes."""
    batches = -(-len(source) // batch_size)
    return min(limit, batches) if limit else batches


def eval_batches(source: Source, batch_size: int, limit: int = 0) -> Iterator[HostBatch]:
    """Every example once, in order; the last batch is filled up with examples of weight 0.

    All processes make equally many batches.

    Args:
      source: held-out examples.
      batch_size: over all processes.
      limit: at most this many batches; 0: all.
    """
    local, count = local_size(batch_size, jax.process_count()), len(source)
    for k in range(num_batches(source, batch_size, limit)):
        first = k * batch_size + jax.process_index() * local
        rows = [_row(source, first + i, count) for i in range(local)]
        yield {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _row(source: Source, index: int, count: int) -> HostBatch:
    example = source[min(index, count - 1)]
    return example if index < count else {**example, "weight": np.zeros_like(example["weight"])}
