"""What a model must know of its data; small, and kept in every checkpoint."""

import dataclasses
from typing import Any

import numpy as np

from aigc_jax.data.text import ByteTokenizer, CharTokenizer, Tokenizer


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Images of one shape.

    Attributes:
      shape: (H, W, C).
      class_names: one per label; empty for images without labels.
      levels: how many values a pixel can have; they are spread over 0…255.
    """

    shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    levels: int = 256

    modality = "image"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """A batch with the right shapes and nothing in it."""
        batch = {"image": np.zeros((size, *self.shape), np.uint8)}
        if self.num_classes:
            batch["label"] = np.zeros(size, np.int32)
        return batch | {"weight": np.ones(size, np.float32)}

    def to_json(self) -> dict[str, Any]:
        return {
            "modality": "image",
            "shape": list(self.shape),
            "class_names": list(self.class_names),
            "levels": self.levels,
        }


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Windows of tokens.

    Attributes:
      tokenizer: text ↔ tokens.
      seq_len: T, the tokens that a window predicts.
    """

    tokenizer: Tokenizer
    seq_len: int

    modality = "text"

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """A batch with the right shapes and nothing in it."""
        return {
            "tokens": np.zeros((size, self.seq_len + 1), np.int32),
            "weight": np.ones((size, self.seq_len), np.float32),
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "modality": "text",
            "tokenizer": self.tokenizer.name,
            "characters": getattr(self.tokenizer, "characters", []),
            "seq_len": self.seq_len,
        }


Spec = ImageSpec | TextSpec


def from_json(value: dict[str, Any]) -> Spec:
    """The inverse of `to_json`."""
    if value["modality"] == "image":
        return ImageSpec(tuple(value["shape"]), tuple(value["class_names"]), value["levels"])
    byte = value["tokenizer"] == "byte"
    tokenizer = ByteTokenizer() if byte else CharTokenizer(value["characters"])
    return TextSpec(tokenizer, value["seq_len"])
