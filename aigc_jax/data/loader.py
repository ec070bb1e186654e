"""From sources to batches: Grain, with a position that can be saved.

Each process reads only its share. Batch k of the run is the same examples in the same order under
any number of processes: process p of P reads rows p·B/P … (p+1)·B/P − 1 of it.
"""

import collections
import functools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.data.dataset import HostBatch, Source, rows
from aigc_jax.data.order import Batches, SequentialIterator
from aigc_jax.data.shuffle import PLACES
from aigc_jax.distributed.processes import all_rows
from aigc_jax.modalities.text.streaming import StreamingSource

RECENT = 64  # batches after which it is known where lanes stood


def local_size(batch_size: int, processes: int) -> int:
    """One process's rows of a batch."""
    if batch_size % processes:
        raise UserError(
            f"a batch of {batch_size} must be divisible by the {processes} processes: change"
            " data.batch_size or eval.batch_size"
        )
    return batch_size // processes


class DataLoader:
    """Endless shuffled batches of this process, and how far they have come.

    Grain makes whole batches ahead: its threads and its position are used, not its stacking of
    examples, which takes longer than a small model's step.

    Args:
      source: the training examples; several to be mixed, or documents that are streamed.
      batch_size: examples of a step over all processes.
      seed: of the order; every epoch has its own.
      threads: reader threads.
      share: which part of each batch to read, and of how many; this process's of all processes' if
        left out. (0, 1) is all of it.
    """

    def __init__(
        self,
        source: Source | StreamingSource,
        batch_size: int,
        seed: int,
        threads: int = 4,
        share: tuple[int, int] | None = None,
    ):
        process, processes = share or (jax.process_index(), jax.process_count())
        local = local_size(batch_size, processes)
        self._row_R = process * local + np.arange(local)
        self._batches = Batches(source, batch_size, seed, self._row_R, threads)
        self._gather = functools.partial(all_rows, part=process) if processes > 1 else np.asarray
        if self._batches.lanes:
            ahead = 2 if threads else 0
            self._iterator = grain.experimental.ThreadPrefetchDatasetIterator(
                SequentialIterator(self._batches), prefetch_buffer_size=ahead
            )
        else:
            data = grain.MapDataset.range(PLACES // batch_size).map(self._batches)
            options = grain.ReadOptions(
                num_threads=threads, prefetch_buffer_size=4 * max(threads, 1)
            )
            self._iterator = iter(data.to_iter_dataset(options))
        self.batch_size = batch_size
        self.taken = 0
        self._documents: list[int] = []
        # Where lanes stood: at the start or where a checkpoint was, and after the last batches.
        self._before = {0: self._iterator.get_state()}
        self._recent: collections.deque[tuple[int, Any]] = collections.deque(maxlen=RECENT)

    def __next__(self) -> HostBatch:
        batch, self._documents = next(self._iterator)
        self.taken += 1
        if self._batches.lanes:
            self._recent.append((self.taken, self._iterator.get_state()))
        return batch

    def position(self) -> dict[str, Any]:
        """Where the data stands, as plain values: the same for every process, which all ask."""
        position = {"examples": self.taken * self.batch_size}
        state = self._iterator.get_state()
        if self._batches.lanes:
            position["lanes"] = {k: self._gather(s).tolist() for k, s in state["lanes"].items()}
        else:
            position["grain"] = state
        mixed = self._batches.taken(self.taken)
        return position | ({"mixture": mixed} if len(mixed) > 1 else {})

    def seek(self, position: dict[str, Any]) -> None:
        """Continues after the examples that `position` counts."""
        taken = position["examples"] // self.batch_size
        if self._batches.lanes:
            lanes = {k: np.array(s, np.int32)[self._row_R] for k, s in position["lanes"].items()}
            self._before[taken] = {"next": taken, "lanes": lanes}
        self.seek_batch(taken)

    def seek_batch(self, taken: int) -> None:
        """Continues after so many batches; of streams, those since the nearest place are read."""
        if not self._batches.lanes:
            self._iterator.set_state({**self._iterator.get_state(), "next_index": taken})
            self.taken = taken
            return
        known = {**self._before, **dict(self._recent)}
        self.taken = max(number for number in known if number <= taken)
        self._before = {0: known[0], self.taken: known[self.taken]}
        self._iterator.set_state(known[self.taken])
        while self.taken < taken:
            next(self)

    def example_ids(self, batch: int) -> list[int]:
        """Which of the source's examples make up a batch of the run, counted from 0.

        Of documents that are streamed, those of this process's rows; the batch must be the last.
        """
        return self._documents if self._batches.lanes else self._batches.examples(batch)


def num_batches(source: Source, batch_size: int, limit: int = 0) -> int:
    """How many batches `eval_batches` makes."""
    batches = -(-len(source) // batch_size)
    return min(limit, batches) if limit else batches


def eval_batches(
    source: Source, batch_size: int, limit: int = 0, share: tuple[int, int] | None = None
) -> Iterator[HostBatch]:
    """Every example once, in order; the last batch is filled up with examples of weight 0.

    All processes make equally many batches.

    Args:
      source: held-out examples.
      batch_size: over all processes.
      limit: at most this many batches; 0: all.
      share: as for `DataLoader`.
    """
    process, processes = share or (jax.process_index(), jax.process_count())
    local, count = local_size(batch_size, processes), len(source)
    for k in range(num_batches(source, batch_size, limit)):
        first = k * batch_size + process * local
        index_B = np.arange(first, first + local)
        batch = rows(source, np.minimum(index_B, count - 1))
        weight = batch["weight"]
        inside = (index_B < count).reshape(-1, *[1] * (weight.ndim - 1))
        yield {**batch, "weight": np.where(inside, weight, np.zeros_like(weight))}
