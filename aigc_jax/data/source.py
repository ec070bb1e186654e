"""Sources of examples: the protocol and its optional capabilities.

Shapes: B rows of a batch, R rows that one process reads.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from aigc_jax.core.feed import HostBatch
from aigc_jax.data.shuffle import EpochShuffle

Example = dict[str, Any]  # arrays and NumPy scalars


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class SupportsBatch(Protocol):
    """A source with a fast path for reading several examples together."""

    def batch(self, index_B: np.ndarray) -> HostBatch:
        """Returns the examples `index_B`, stacked; equal to reading each of them alone."""
        ...


@runtime_checkable
class SupportsEpochBatch(Protocol):
    """A source whose examples differ between epochs, such as windows with a random offset."""

    def epoch_batch(self, index_B: np.ndarray, epoch_B: np.ndarray, seed: int) -> HostBatch:
        """Returns the examples `index_B` in the epochs `epoch_B` of a run with this seed."""
        ...


@runtime_checkable
class StoredInFiles(Protocol):
    """A source whose examples are stored in files that are expensive to open.

    Attributes:
      file_ends: number of examples up to the end of each file, (F,); None for a full shuffle.
      shuffle_window: approximate number of examples that are shuffled together.
    """

    file_ends: np.ndarray | None
    shuffle_window: int


class RowStreams(Protocol):
    """One endless stream of rows for each row of a process's batches."""

    def row(self, index: int) -> tuple[Example, list[int]]:
        """Returns the next row of stream `index`, and the indices of the documents in it."""
        ...

    def state(self) -> np.ndarray:
        """Returns positions of the streams, (R, S) int32."""
        ...

    def restore(self, state_RS: np.ndarray) -> None:
        """Continues from positions returned by `state`."""
        ...


@runtime_checkable
class SupportsRowStreams(Protocol):
    """A source of documents of unknown length, which are packed into rows in sequence."""

    def __len__(self) -> int: ...

    def row_streams(self, seed: int, row_R: np.ndarray, batch_size: int) -> RowStreams:
        """Returns the streams of these rows of every batch.

        Args:
          seed: random seed of the order of the documents.
          row_R: indices of the rows, of `batch_size`.
          batch_size: rows of a batch over all processes.
        """
        ...


TrainSource = Source | SupportsRowStreams


def epoch_shuffle(source: TrainSource, seed: int) -> EpochShuffle:
    """Returns the order of a source's examples; files are shuffled in windows of complete files."""
    if isinstance(source, StoredInFiles):
        return EpochShuffle(len(source), seed, source.file_ends, source.shuffle_window)
    return EpochShuffle(len(source), seed)


def read_batch(source: Source, index_B: np.ndarray) -> HostBatch:
    """Returns the examples `index_B` as one batch."""
    if isinstance(source, SupportsBatch):
        return source.batch(index_B)
    return stack_examples([source[i] for i in index_B.tolist()])


def stack_examples(examples: Sequence[Example]) -> HostBatch:
    """Stacks examples with the same fields."""
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def assemble_batch(part_B: np.ndarray, read: Callable[[int, np.ndarray], HostBatch]) -> HostBatch:
    """Assembles a batch whose rows come from several sources.

    Args:
      part_B: index of the source of each row.
      read: returns the rows of a source, given its index and rows of the batch.
    """
    batch: HostBatch = {}
    for part in np.unique(part_B).tolist():
        (row_R,) = np.nonzero(part_B == part)
        for key, value in read(part, row_R).items():
            if key not in batch:
                batch[key] = np.empty((len(part_B), *value.shape[1:]), value.dtype)
            batch[key][row_R] = value
    return batch
