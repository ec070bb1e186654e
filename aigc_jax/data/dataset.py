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
      spec: spec of the examples.
      train: training examples.
      validation: held-out examples.
      texts: documents of the splits "train" and "validation", for baselines that read plain text;
        {} for other data.
      dialogues: held-out conversations with a message of the assistant; [] for other data.
      channel_images: for images whose channels are independent images: such images, (N, H, W)
        uint8, and their classes (N,), the decimal digits of an image's class.
      fingerprint: hash that identifies data passed from Python; "" if unknown.
    """

    spec: Spec
    train: TrainSource
    validation: Source
    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    dialogues: list[list[Message]] = dataclasses.field(default_factory=list)
    channel_images: tuple[np.ndarray, np.ndarray] | None = None
    fingerprint: str = ""


def draw_examples(source: Source, limit: int) -> list[Example]:
    """Returns at most `limit` random examples, always the same ones.

    The first ones would be biased: a data set may be stored class by class.
    """
    return [source[int(i)] for i in permutation(len(source), 0)[:limit]]
