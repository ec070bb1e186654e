"""DataLoader: endless shuffled batches of one process, with a position that can be saved.

Each process reads only its shard of a batch. Batch k of a run has the same examples in the same
order under any number of processes: process p of P reads rows p·B/P … (p+1)·B/P − 1 of it.
"""

import collections
import functools
from typing import Any

import grain
import jax
import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.feed import HostBatch
from aigc_jax.data.batch_reader import BatchReader, NumberedBatch
from aigc_jax.data.shuffle import PLACES
from aigc_jax.data.source import TrainSource
from aigc_jax.distributed.processes import gather_rows

RECENT = 64  # batches for which the positions of the row streams are remembered


def local_size(batch_size: int, processes: int) -> int:
    """Returns the number of rows per process.

    Raises:
      UserError: if the batch size is not divisible by the number of processes.
    """
    if batch_size % processes:
        raise UserError(
            f"a batch of {batch_size} must be divisible by the {processes} processes: change"
            " data.batch_size or eval.batch_size"
        )
    return batch_size // processes


class SequentialIterator(grain.DatasetIterator):
    """Iterator over batches in sequence; its state is that of the row streams."""

    def __init__(self, batches: BatchReader):
        super().__init__()
        self._batches, self._next = batches, 0

    def __next__(self) -> NumberedBatch:
        batch = self._batches(self._next)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {
            "next": self._next,
            "streams": {part: rows.state() for part, rows in self._batches.streams.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._next = state["next"]
        for part, rows in self._batches.streams.items():
            rows.restore(state["streams"][part])


class DataLoader:
    """A feed of endless shuffled batches of this process; see `core.feed.Feed`.

    Grain prefetches complete batches: its threads and iterator state are used, but not its stacking
    of examples, which takes longer than a small model's step.

    Args:
      source: the training examples: by index, streamed, or a `MixedSource` of both.
      batch_size: examples of a step over all processes.
      seed: random seed; every epoch has a different order.
      threads: reader threads.
      shard: (index, number) of equal shards of each batch; this process's by default. (0, 1) is
        the complete batch.

    Attributes:
      batch_size: examples of a step over all processes.
      taken: number of batches delivered.
    """

    def __init__(
        self,
        source: TrainSource,
        batch_size: int,
        seed: int,
        threads: int = 4,
        shard: tuple[int, int] | None = None,
    ):
        process, processes = shard or (jax.process_index(), jax.process_count())
        local = local_size(batch_size, processes)
        self._row_R = process * local + np.arange(local)
        self._batches = BatchReader(source, batch_size, seed, self._row_R, threads)
        self._gather = functools.partial(gather_rows, part=process) if processes > 1 else np.asarray
        self._iterator: grain.DatasetIterator
        if self._batches.streams:
            self._iterator = grain.experimental.ThreadPrefetchDatasetIterator(
                SequentialIterator(self._batches), prefetch_buffer_size=2 if threads else 0
            )
        else:
            data = grain.MapDataset.range(PLACES // batch_size).map(self._batches)
            options = grain.ReadOptions(
                num_threads=threads, prefetch_buffer_size=4 * max(threads, 1)
            )
            self._iterator = iter(data.to_iter_dataset(options))
        self.batch_size = batch_size
        self.taken = 0
        self._doc_ids: list[int] = []
        # States of the row streams: at the start or a restored position, and after recent batches.
        self._before = {0: self._iterator.get_state()}
        self._recent: collections.deque[tuple[int, Any]] = collections.deque(maxlen=RECENT)

    def next(self, state: Any = None) -> HostBatch:
        """Returns the next batch of this process; ignores the train state."""
        del state
        batch, self._doc_ids = next(self._iterator)
        self.taken += 1
        if self._batches.streams:
            self._recent.append((self.taken, self._iterator.get_state()))
        return batch

    def position(self) -> dict[str, Any]:
        """Returns the position as plain JSON values, equal on all processes; all must call it."""
        position: dict[str, Any] = {"examples": self.taken * self.batch_size}
        state = self._iterator.get_state()
        if self._batches.streams:
            streams = {k: self._gather(s).tolist() for k, s in state["streams"].items()}
            position |= {"streams": streams}
        else:
            position |= {"grain": state}
        mixed = self._batches.taken(self.taken)
        return position | ({"mixture": mixed} if len(mixed) > 1 else {})

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a `position`."""
        taken = position["examples"] // self.batch_size
        if self._batches.streams:
            streams = position["streams"].items()
            own = {k: np.array(s, np.int32)[self._row_R] for k, s in streams}
            self._before[taken] = {"next": taken, "streams": own}
        self.skip_to(taken)

    def skip_to(self, taken: int) -> None:
        """Continues after `taken` batches; row streams resume at the nearest saved position."""
        if not self._batches.streams:
            self._iterator.set_state({**self._iterator.get_state(), "next_index": taken})
            self.taken = taken
            return
        known = {**self._before, **dict(self._recent)}
        self.taken = max(number for number in known if number <= taken)
        self._before = {0: known[0], self.taken: known[self.taken]}
        self._iterator.set_state(known[self.taken])
        while self.taken < taken:
            self.next()

    def example_ids(self, batch: int) -> list[int]:
        """Returns indices of the source's examples in batch number `batch`, over all processes.

        For streamed documents: the ids in this process's rows; `batch` must be the last one taken.
        """
        return self._doc_ids if self._batches.streams else self._batches.example_ids(batch)
