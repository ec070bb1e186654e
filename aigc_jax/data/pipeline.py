"""From sources to batches: Grain, with a position that can be saved.

Each process reads only its share. Batch k of the run is the same examples in the same order under
any number of processes: process p of P reads rows p·B/P … (p+1)·B/P − 1 of it.
"""

import functools
from collections.abc import Callable, Iterator
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

    Grain makes whole batches ahead, each from its number alone: its threads and its position are
    used, not its stacking of examples, which takes longer than a small model's step.

    Args:
      source: the training examples.
      batch_size: examples of a step over all processes.
      seed: of the order; every epoch has its own.
      threads: reader threads.
      share: which part of each batch to read, and of how many; this process's of all processes' if
        left out. (0, 1) is all of it.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        threads: int = 4,
        share: tuple[int, int] | None = None,
    ):
        process, processes = share or (jax.process_index(), jax.process_count())
        local = local_size(batch_size, processes)
        self._order = Order(len(source), seed)
        read = _reader(source, self._order, seed)

        def batch(number: int) -> HostBatch:
            return read(number * batch_size + process * local + np.arange(local))

        data = grain.MapDataset.range(self._order.places // batch_size).map(batch)
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
        return self._order(batch * self.batch_size + np.arange(self.batch_size)).tolist()


class Order:
    """Which example stands at each place of an endless shuffled sequence.

    Args:
      count: examples; each stands once in every epoch.
      seed: of the order.

    Attributes:
      count: the same.
      places: how many there are: as good as endless.
    """

    SMALL = 1 << 16  # below, an epoch's order is held: finding single places of it takes longer

    def __init__(self, count: int, seed: int):
        self.count = count
        epochs = 2**53 // max(count, 1)
        self.places = epochs * count
        self._epoch = _remembered(
            lambda epoch: np.random.default_rng([seed, epoch, count]).permutation(count)
        )
        # Needs no memory, however many examples there are.
        self._single = grain.MapDataset.range(count).seed(seed).shuffle().repeat(epochs)

    def __call__(self, place_B: np.ndarray) -> np.ndarray:
        """The examples (B,) at these places."""
        if self.count > self.SMALL:
            return np.array([self._single[place] for place in place_B.tolist()])
        epoch_B, inside_B = np.divmod(place_B, self.count)
        example_B = np.empty_like(inside_B)
        for epoch in np.unique(epoch_B).tolist():
            here = epoch_B == epoch
            example_B[here] = self._epoch(epoch)[inside_B[here]]
        return example_B


def _remembered(of_epoch: Callable[[int], Any]) -> Callable[[int], Any]:
    """Keeps the last few epochs' values: reader threads can be in two epochs at once."""
    return functools.lru_cache(maxsize=4)(of_epoch)


def _reader(source: Source, order: Order, seed: int) -> Callable[[np.ndarray], HostBatch]:
    """What makes the batch of the examples at some places (B,) of the order."""
    if not isinstance(source, Windows):
        return lambda place_B: rows(source, order(place_B))
    length = source.seq_len
    # Windows are cut at other places in every epoch: each token is seen once.
    offset = _remembered(lambda epoch: np.random.default_rng([seed, epoch]).integers(length))

    def windows(place_B: np.ndarray) -> HostBatch:
        offset_B = np.array([offset(epoch) for epoch in (place_B // order.count).tolist()])
        return source.cut(order(place_B) * length + offset_B)

    return windows


def rows(source: Source, index_B: np.ndarray) -> HostBatch:
    """The examples of these numbers (B,) as one batch."""
    if hasattr(source, "batch"):
        return source.batch(index_B)
    examples = [source[i] for i in index_B.tolist()]
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


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
      share: as for `TrainIterator`.
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
