"""Batches of a fixed size, with a padded last one, so that functions compile once."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from aigc_jax.core.feed import HostBatch
from aigc_jax.data.loader import local_size
from aigc_jax.data.source import Source, read_batch


def padded_indices(count: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the indices below `count` in batches of `size`.

    Yields:
      Indices (size,), where the last index is repeated to fill the last batch; and a mask (size,)
      bool, False for that padding.
    """
    for first in range(0, count, size):
        index_B = np.arange(first, first + size)
        yield np.minimum(index_B, count - 1), index_B < count


def map_batches(function: Callable[[np.ndarray, np.ndarray], Any], count: int, size: int) -> Any:
    """Applies a function to the indices below `count` in batches of a fixed size.

    Args:
      function: maps indices (size,) and their mask (size,), False for padding, to a tree of arrays
        (size, …).
      count: at least 1.
      size: rows of a batch.

    Returns:
      The trees of all batches, concatenated to (count, …) NumPy arrays.
    """
    parts = []
    for index_B, real_B in padded_indices(count, size):
        found = function(index_B, real_B)
        parts.append(jax.tree.map(lambda x, real_B=real_B: np.asarray(x)[real_B], found))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def num_batches(source: Source, batch_size: int, limit: int = 0) -> int:
    """Returns the number of batches of `eval_batches`."""
    batches = -(-len(source) // batch_size)
    return min(limit, batches) if limit else batches


def eval_batches(
    source: Source, batch_size: int, limit: int = 0, shard: tuple[int, int] | None = None
) -> Iterator[HostBatch]:
    """Yields all examples in order; the last batch is padded with examples of weight 0.

    All processes yield the same number of batches.

    Args:
      source: held-out examples.
      batch_size: examples per batch over all processes.
      limit: at most this many batches; 0: all.
      shard: as for `DataLoader`.
    """
    process, processes = shard or (jax.process_index(), jax.process_count())
    local = local_size(batch_size, processes)
    row_R = process * local + np.arange(local)
    total = num_batches(source, batch_size, limit)
    for index_B, real_B in itertools.islice(padded_indices(len(source), batch_size), total):
        batch = read_batch(source, index_B[row_R])
        weight = batch["weight"]
        real = real_B[row_R].reshape(-1, *[1] * (weight.ndim - 1))
        yield {**batch, "weight": np.where(real, weight, np.zeros_like(weight))}
