"""What a model must know of its data; small, and kept in every checkpoint."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.modalities.text import tokenizers
from aigc_jax.modalities.text.labelled_text import Labelled, Tagged
from aigc_jax.modalities.text.tokenizers import Tokenizer

MAX_VALUES = 1 << 28  # of an image; a checkpoint may claim any size
MAX_SEQ_LEN = 1 << 24
TASKS = ("labels", "tags")
TEXT_FORMATS = ("stream", "documents", "chat", *TASKS)  # of text


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Images of one shape.

    Attributes:
      shape: (H, W, C).
      class_names: one per label; empty for images without labels.
      levels: how many values a pixel can have; they are spread over 0…255.
      continuous: whether these are float32 latents of an autoencoder instead of pixels.
      stage: the config of the frozen autoencoder through which a model sees the images, if any.
    """

    shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    levels: int = 256
    continuous: bool = False
    stage: Mapping[str, Any] | None = None

    modality = "image"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """A batch with the right shapes and nothing in it."""
        dtype = np.float32 if self.continuous else np.uint8
        batch = {"image": np.zeros((size, *self.shape), dtype)}
        if self.num_classes:
            batch["label"] = np.zeros(size, np.int32)
        return batch | {"weight": np.ones(size, np.float32)}

    def to_json(self) -> dict[str, Any]:
        return {
            "modality": "image",
            "shape": list(self.shape),
            "class_names": list(self.class_names),
            "levels": self.levels,
            **({} if self.stage is None else {"stage": dict(self.stage)}),
        }


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Examples of tokens.

    Attributes:
      tokenizer: text ↔ tokens.
      seq_len: T, the tokens that an example predicts or holds.
      format: stream, documents, chat, labels or tags; see `text_examples`.
      class_names: of the labels or tags.
    """

    tokenizer: Tokenizer
    seq_len: int
    format: str = "stream"
    class_names: tuple[str, ...] = ()

    @property
    def modality(self) -> str:
        return {"labels": "labelled text", "tags": "tagged text"}.get(self.format, "text")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """A batch with the right shapes and nothing in it."""
        task = self.format in TASKS
        batch = {"tokens": np.zeros((size, self.seq_len + 1), np.int32)}
        if self.format != "stream":
            batch["segments"] = np.ones((size, self.seq_len + 1), np.int32)
        if self.format == "labels":
            batch["label"] = np.zeros(size, np.int32)
        if self.format == "tags":
            batch["tags"] = np.zeros((size, self.seq_len), np.int32)
        return batch | {"weight": np.ones(size if task else (size, self.seq_len), np.float32)}

    def example(self, text: str) -> dict[str, np.ndarray]:
        """One text as an example whose label, or whose words' tags, are not known: all 0.

        What does not fit is left out.

        Raises:
          UserError: if the tokenizer cannot take it.
        """
        if self.format == "tags":
            words = text.split() or [""]
            return Tagged([words], [[0] * len(words)], self.tokenizer, self.seq_len)[0]
        return Labelled([text], [0], self.tokenizer, self.seq_len)[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "modality": "text",
            **self.tokenizer.to_json(),
            "seq_len": self.seq_len,
            "format": self.format,
            "class_names": list(self.class_names),
        }


Spec = ImageSpec | TextSpec


def from_json(value: Any) -> Spec:
    """The inverse of `to_json`.

    Args:
      value: what JSON made of it. It may come from anywhere: nothing is taken as given.

    Raises:
      UserError: if it describes no data, or absurdly large ones.
    """
    try:
        modality = value["modality"]
        if modality == "image":
            shape, stage = value["shape"], value.get("stage")
            return _image_spec(shape, value["class_names"], value["levels"], stage)
        if modality == "text":
            tokenizer = tokenizers.from_json(value)
            return _text_spec(tokenizer, value["seq_len"], value["format"], value["class_names"])
        raise ValueError(f"the modality is {shorten(modality, 40)}")
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(
            f"the checkpoint's description of its data is damaged ({one_line(e)}): take another"
            " checkpoint"
        ) from e


def _image_spec(shape: Any, class_names: Any, levels: Any, stage: Any) -> ImageSpec:
    whole = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)
    if not whole or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise ValueError(f"images of the shape {shorten(shape, 80)}")
    if not _strings(class_names):
        raise ValueError("class names that are none")
    if type(levels) is not int or not 2 <= levels <= 256:
        raise ValueError(f"pixels of {shorten(levels, 40)} levels")
    if stage is not None and not isinstance(stage, dict):
        raise ValueError(f"a first stage that is {shorten(stage, 40)}")
    return ImageSpec((shape[0], shape[1], shape[2]), tuple(class_names), levels, stage=stage)


def _text_spec(tokenizer: Tokenizer, seq_len: Any, format: Any, class_names: Any) -> TextSpec:
    if type(seq_len) is not int or not 0 < seq_len <= MAX_SEQ_LEN:
        raise ValueError(f"examples of {shorten(seq_len, 40)} tokens")
    if format not in TEXT_FORMATS:
        raise ValueError(f"text of the format {shorten(format, 40)}")
    if not _strings(class_names) or bool(class_names) != (format in TASKS):
        raise ValueError("class names that are none")
    return TextSpec(tokenizer, seq_len, format, tuple(class_names))


def _strings(value: Any) -> bool:
    """Whether it is a list of different strings that UTF-8 can hold."""
    if not isinstance(value, list) or not all(isinstance(s, str) for s in value):
        return False
    "".join(value).encode("utf-8")  # raises ValueError for half a surrogate pair
    return len(set(value)) == len(value)


def check_spec(workdir: str, old: dict[str, Any], new: Spec, source: str) -> None:
    """Raises UserError if data are not of the kind that a workdir was trained on."""
    if old != new.to_json():
        raise UserError(
            f"data.source='{source}' is not what {workdir} was trained on: its shapes, classes"
            " or vocabulary have changed"
        )
