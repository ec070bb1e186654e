"""What a data set is to the rest of the package, and how examples of it are held out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from aigc_jax.config import Data
from aigc_jax.data.chat import Message
from aigc_jax.data.spec import Spec
from aigc_jax.errors import UserError

T = TypeVar("T", bound=Sequence)


class Source(Protocol):
    """Examples by index.

    One that is quicker at many examples at once also has `batch(index_B)`, which returns the same
    as these examples stacked.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


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


def hold_out(count: int, config: Data, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The indices to train on and those held out: a fraction chosen by seed, or the last ones.

    Args:
      count: how many examples there are.
      config: the section `data`.
      what: the examples, for messages.

    Raises:
      UserError: if either would be empty.
    """
    fraction = config.validation_fraction
    if config.split == "tail":
        train, held_out = np.split(np.arange(count), [int(count * (1 - fraction))])
    else:
        order = np.random.default_rng(config.split_seed).permutation(count)
        held_out, train = np.split(order, [round(fraction * count)])
    if not len(train) or not len(held_out):
        raise UserError(
            f"data.validation_fraction={fraction} of {count} {what} leaves nothing to train on or"
            " nothing to hold out"
        )
    return train, held_out


def limited(examples: T, config: Data) -> T:
    """The first `data.limit` of the training examples, or all."""
    return examples[: config.limit or len(examples)]
