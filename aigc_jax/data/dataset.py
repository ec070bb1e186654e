"""What a data set is to the rest of the package, and how examples of it are held out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError
from aigc_jax.data.shuffle import StratifiedSplit, permutation, split
from aigc_jax.modalities.spec import Spec
from aigc_jax.modalities.text.chat_format import Message

T = TypeVar("T", bound=Sequence)
HostBatch = dict[str, np.ndarray]
Files = tuple[np.ndarray, int] | tuple[()]  # where files of examples end, and `data.shuffle_window`


class Source(Protocol):
    """Examples by index.

    One that is quicker at many examples at once also has `batch(index_B)`, which returns the same
    as these examples stacked.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


def draw_examples(source: Source, limit: int) -> list[dict[str, np.ndarray]]:
    """Some examples, always the same, from all over the source: it may be stored class by class."""
    return [source[int(i)] for i in permutation(len(source), 0)[:limit]]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and held-out examples.

    Attributes:
      spec: what a model must know of them.
      train: examples to learn from.
      validation: held-out examples.
      texts: for text, the documents of both splits, for baselines that read plain text.
      dialogues: for chats, the held-out conversations in which the assistant speaks.
      parts: if each colour of an image is an image of its own, such images, (N, H, W) uint8, and
        their classes (N,); an image's class has theirs as its digits.
    """

    spec: Spec
    train: Source
    validation: Source
    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    dialogues: list[list[Message]] = dataclasses.field(default_factory=list)
    parts: tuple[np.ndarray, np.ndarray] | None = None


def held_out_split(splits: Mapping[str, Any]) -> str | None:
    """Which of a source's own splits is held out, if it has one: that for validation first."""
    return next((s for s in ("validation", "test") if splits.get(s)), None)


def hold_out(count: int, config: Data, what: str) -> tuple[Sequence[int], Sequence[int]]:
    """The indices to train on and those held out: a fraction chosen by seed, or the last ones.

    They take no more memory for a billion examples than for a million.

    Args:
      count: how many examples there are.
      config: the section `data`.
      what: the examples, for messages.

    Raises:
      UserError: if either would be empty.
    """
    fraction = config.validation_fraction
    if config.split == "tail":
        order, end = range(count), int(count * (1 - fraction))
        train, held_out = order[:end], order[end:]
    else:
        train, held_out = split(count, fraction, config.split_seed)
    if not len(train) or not len(held_out):
        raise UserError(
            f"data.validation_fraction={fraction} of {count} {what} leaves nothing to train on or"
            " nothing to hold out"
        )
    return train, held_out


def limited(examples: T, config: Data) -> T:
    """The first `data.max_train_examples` of the training examples, or all."""
    return examples[: config.max_train_examples or len(examples)]


def files_of(examples: Any, indices: Sequence[int], config: Data) -> Files:
    """`Order`'s view of examples chosen by `hold_out` or `limited`; () if it makes no difference.

    Args:
      examples: all of them; `ends` says where their files end, if they have any.
      indices: which are chosen.
      config: the section `data`.
    """
    ends = getattr(examples, "ends", None)
    if ends is None or len(indices) <= config.shuffle_window:
        return ()
    if isinstance(indices, StratifiedSplit):
        return indices.before(ends), config.shuffle_window
    # The first of them.
    return np.append(ends[ends < len(indices)], len(indices)), config.shuffle_window


def rows(source: Source, index_B: np.ndarray) -> HostBatch:
    """The examples of these numbers (B,) as one batch."""
    if hasattr(source, "batch"):
        return source.batch(index_B)
    return stacked([source[i] for i in index_B.tolist()])


def stacked(examples: Sequence[dict[str, np.ndarray]]) -> HostBatch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def from_parts(part_B: np.ndarray, read: Callable[[int, np.ndarray], HostBatch]) -> HostBatch:
    """A batch whose rows come from several sources.

    Args:
      part_B: which source each row comes from.
      read: (source, rows of the batch) → these rows.
    """
    batch: HostBatch = {}
    for part in np.unique(part_B).tolist():
        (row_R,) = np.nonzero(part_B == part)
        for key, value in read(part, row_R).items():
            if key not in batch:
                batch[key] = np.empty((len(part_B), *value.shape[1:]), value.dtype)
            batch[key][row_R] = value
    return batch
