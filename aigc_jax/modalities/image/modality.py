"""The modality "image"."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import MODALITIES, Examples, Modality, Spec
from aigc_jax.modalities.image.eval_options import ImageEval
from aigc_jax.modalities.image.grid import save_images
from aigc_jax.modalities.image.image_dataset import InMemoryImages
from aigc_jax.modalities.image.spec import ImageSpec, image_spec_from_json

SHAPE = re.compile(r"(latents:)?(\d+)x(\d+)x(\d+)(?::(\d+))?")
SYNTHETIC_BATCHES = 4  # number of different batches of random images


class ImageModality(Modality):
    """Images of one shape: uint8 pixels, or latents of an autoencoder."""

    name = "image"
    suffix = ".png"
    unit = "images"
    metrics = ("aigc_jax.modalities.image.metrics.sample_quality:SampleQuality",)
    eval_options = ImageEval

    def spec_from_json(self, value: Mapping[str, Any]) -> ImageSpec:
        return image_spec_from_json(value)

    def save(self, samples: Any, path: str) -> str:
        return save_images(samples, path)

    def is_samples(self, samples: Any) -> bool:
        return isinstance(samples, np.ndarray) and samples.ndim == 4 and samples.shape[-1] in (1, 3)

    def describe(self, spec: Spec) -> dict[str, Any]:
        assert isinstance(spec, ImageSpec)
        return {"shape": list(spec.shape), "classes": spec.num_classes}

    def synthetic_spec(self, shape: str, config: Config) -> ImageSpec | None:
        """Returns the spec of "32x32x3" or "32x32x3:10": height, width, channels and classes.

        The prefix "latents:" is for an autoencoder's latents.
        """
        del config
        found = SHAPE.fullmatch(shape)
        if not found:
            return None
        latents, height, width, channels, classes = found.groups()
        size = int(height), int(width), int(channels)
        if not all(size):
            raise UserError(f"--synthetic={shape}: an image needs at least one pixel and channel")
        names = tuple(map(str, range(int(classes or 0))))
        return ImageSpec(size, names, continuous=bool(latents))

    def synthetic_data(
        self, spec: Spec, config: Config, rng: np.random.Generator
    ) -> tuple[Spec, Examples]:
        assert isinstance(spec, ImageSpec)
        count = SYNTHETIC_BATCHES * config.data.batch_size
        size = (count, *spec.shape)
        columns: dict[str, np.ndarray] = {
            "image": rng.standard_normal(size, np.float32)
            if spec.continuous
            else rng.integers(0, 256, size, np.uint8)
        }
        if spec.num_classes:
            columns["label"] = rng.integers(0, spec.num_classes, count)
        return spec, InMemoryImages(columns, np.arange(count))


MODALITIES.register("image", ImageModality())
