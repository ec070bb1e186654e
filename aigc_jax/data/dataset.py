"""A data set: training and held-out examples with their spec."""

import dataclasses

import numpy as np

from aigc_jax.core.modality import Spec
from aigc_jax.data.shuffle import permutation
from aigc_jax.data.source import Example, Source, TrainSource

Message = dict[str, str]  # "role" and "content"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and held-out examples.

    Attributes:
      spec: what a model must know of them.
      train: examples to train on.
      validation: held-out examples.
      texts: for text, the documents of the splits "train" and "validation", for baselines that
        read plain text.
      dialogues: for chats, the held-out conversations with a message of the assistant.
      channel_images: if each channel of an image is an image of its own, such images, (N, H, W)
        uint8, and their classes (N,). An image's class has theirs as its decimal digits.
      fingerprint: a hash by which data given from Python are recognised; "": unknown.
    """

    spec: Spec
    train: TrainSource
    validation: Source
    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    dialogues: list[list[Message]] = dataclasses.field(default_factory=list)
    channel_images: tuple[np.ndarray, np.ndarray] | None = None
    fingerprint: str = ""


def draw_examples(source: Source, limit: int) -> list[Example]:
    """At most `limit` examples from all over the source, always the same ones.

    The first ones would not do: a data set may be stored class by class.
    """
    return [source[int(i)] for i in permutation(len(source), 0)[:limit]]
