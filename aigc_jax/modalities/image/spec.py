"""Spec of images."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.errors import shorten
from aigc_jax.core.modality import (
    CONTINUOUS,
    GIVEN,
    LABEL,
    LEVELS,
    MODELLED,
    Field,
    class_names_from_json,
)

MAX_VALUES = 1 << 28  # maximum values of an image in an untrusted checkpoint


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Spec of images of one shape.

    Attributes:
      shape: (H, W, C).
      class_names: names of the classes; empty for images without labels.
      levels: number of values of a pixel, spread over 0…255.
      continuous: whether they are float32 latents of an autoencoder instead of pixels.
    """

    shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    levels: int = 256
    continuous: bool = False

    @property
    def modality(self) -> str:
        """Returns "image"."""
        return "image"

    @property
    def num_classes(self) -> int:
        """Returns the number of classes; 0 for images without labels."""
        return len(self.class_names)

    @property
    def fields(self) -> dict[str, Field]:
        """Returns the image, which is modelled, and its label, if there are classes."""
        label = {"label": Field(LABEL, GIVEN)} if self.num_classes else {}
        return {"image": Field(CONTINUOUS if self.continuous else LEVELS, MODELLED), **label}

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """Returns a batch of zeros: "image" (size, H, W, C), float32 for latents else uint8."""
        dtype = np.float32 if self.continuous else np.uint8
        batch: dict[str, np.ndarray] = {"image": np.zeros((size, *self.shape), dtype)}
        if self.num_classes:
            batch["label"] = np.zeros(size, np.int32)
        return batch | {"weight": np.ones(size, np.float32)}

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; the inverse of `image_spec_from_json`."""
        return {
            "modality": "image",
            "shape": list(self.shape),
            "class_names": list(self.class_names),
            "levels": self.levels,
        }


def image_spec_from_json(value: Mapping[str, Any]) -> ImageSpec:
    """Builds a spec from the output of `ImageSpec.to_json`, which is not trusted.

    Raises:
      KeyError, TypeError, ValueError: if it is not a spec of images, or its sizes are absurd.
    """
    shape, levels = value["shape"], value["levels"]
    class_names = class_names_from_json(value["class_names"])
    valid = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)
    if not valid or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
        raise ValueError(f"images of the shape {shorten(shape, 80)}")
    if type(levels) is not int or not 2 <= levels <= 256:
        raise ValueError(f"pixels of {shorten(levels, 40)} levels")
    return ImageSpec((shape[0], shape[1], shape[2]), class_names, levels)
