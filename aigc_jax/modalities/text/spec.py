"""Spec of text data in any format.

Shapes: T tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.errors import shorten
from aigc_jax.core.modality import (
    GIVEN,
    LABEL,
    MODELLED,
    TAGS,
    TOKENS,
    Field,
    Spec,
    class_names_from_json,
)
from aigc_jax.modalities.text import tokenizers
from aigc_jax.modalities.text.labelled_text import Labelled, Tagged
from aigc_jax.modalities.text.tokenizers import Tokenizer

MAX_SEQ_LEN = 1 << 24
TASKS = ("labels", "tags")  # formats that model a class or tags, given the text
TEXT_FORMATS = ("stream", "documents", "chat", *TASKS)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Spec of text as tokens.

    Attributes:
      tokenizer: tokenizer of the text.
      seq_len: T, the tokens per example.
      format: one of `TEXT_FORMATS`, as `data.format`.
      class_names: names of the labels or tags.
    """

    tokenizer: Tokenizer
    seq_len: int
    format: str = "stream"
    class_names: tuple[str, ...] = ()

    @property
    def modality(self) -> str:
        """Returns "text"."""
        return "text"

    @property
    def num_classes(self) -> int:
        """Returns the number of labels or tags; 0 for other formats."""
        return len(self.class_names)

    @property
    def fields(self) -> dict[str, Field]:
        """Returns the tokens, and the label or tags, which are modelled given the tokens."""
        if self.format == "labels":
            return {"tokens": Field(TOKENS, GIVEN), "label": Field(LABEL, MODELLED)}
        if self.format == "tags":
            return {"tokens": Field(TOKENS, GIVEN), "tags": Field(TAGS, MODELLED)}
        return {"tokens": Field(TOKENS, MODELLED)}

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """Returns a batch of zeros: "tokens" (size, T + 1), "tags" (size, T), and so on."""
        task = self.format in TASKS
        batch: dict[str, np.ndarray] = {"tokens": np.zeros((size, self.seq_len + 1), np.int32)}
        if self.format != "stream":
            batch["segments"] = np.ones((size, self.seq_len + 1), np.int32)
        if self.format == "labels":
            batch["label"] = np.zeros(size, np.int32)
        if self.format == "tags":
            batch["tags"] = np.zeros((size, self.seq_len), np.int32)
        return batch | {"weight": np.ones(size if task else (size, self.seq_len), np.float32)}

    def example(self, text: str) -> dict[str, np.ndarray]:
        """Encodes a text as an example, truncated to T tokens, with label or tags of 0.

        Raises:
          UserError: if the tokenizer cannot encode it.
        """
        if self.format == "tags":
            words = text.split() or [""]
            return Tagged([words], [[0] * len(words)], self.tokenizer, self.seq_len)[0]
        return Labelled([text], [0], self.tokenizer, self.seq_len)[0]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values, including the tokenizer; see `text_spec_from_json`."""
        return {
            "modality": "text",
            **self.tokenizer.to_json(),
            "seq_len": self.seq_len,
            "format": self.format,
            "class_names": list(self.class_names),
        }


def text_spec_from_json(value: Mapping[str, Any]) -> TextSpec:
    """Builds a spec from the output of `TextSpec.to_json`, which is not trusted.

    Raises:
      KeyError, TypeError, ValueError: if it is not a spec of text, or its sizes are absurd.
    """
    tokenizer = tokenizers.from_json(dict(value))
    seq_len, format = value["seq_len"], value["format"]
    class_names = class_names_from_json(value["class_names"])
    if type(seq_len) is not int or not 0 < seq_len <= MAX_SEQ_LEN:
        raise ValueError(f"examples of {shorten(seq_len, 40)} tokens")
    if format not in TEXT_FORMATS:
        raise ValueError(f"text of the format {shorten(format, 40)}")
    if bool(class_names) != (format in TASKS):
        raise ValueError(f"{len(class_names)} class names for the format {format}")
    return TextSpec(tokenizer, seq_len, format, class_names)


def text_tokenizer(spec: Spec) -> Tokenizer | None:
    """Returns the tokenizer of a text spec; None for other data."""
    return spec.tokenizer if isinstance(spec, TextSpec) else None
