"""Registers the readers and the data-set builder of images."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.modalities.image.array_files import (
    array_dataset,
    read_idx,
    read_npz,
    read_safetensors,
)
from aigc_jax.modalities.image.image_dataset import image_dataset
from aigc_jax.modalities.image.image_folder import read_folder
from aigc_jax.modalities.registries import (
    DATASET_BUILDERS,
    FIELD_READERS,
    READERS,
    Columns,
    FieldReader,
)

READERS.register(
    "folder", lambda path, options: read_folder(os.path.expanduser(path), options.image_size)
)
READERS.register("npz", lambda path, _: read_npz(path))
READERS.register("safetensors", lambda path, _: read_safetensors(path))
READERS.register("idx", lambda path, _: read_idx(os.path.expanduser(path)))

DATASET_BUILDERS.register(
    "image", lambda raw, config, tokenizer, trained: image_dataset(raw, config)
)


def images_from_python(splits: Mapping[str, Columns], class_names: tuple[str, ...]) -> RawDataset:
    """Builds raw images from columns "image" and, optionally, "label".

    Raises:
      UserError: for images of different shapes, or arrays that are not images or labels.
    """
    arrays = {}
    for split, columns in splits.items():
        labels = columns.get("label")
        arrays[split] = (
            _one_array(columns["image"], split),
            None if labels is None else np.asarray(labels),
        )
    return array_dataset(arrays, "data", class_names)


def _one_array(values: Any, split: str) -> np.ndarray:
    """Stacks images to one array; UserError if they differ in shape."""
    if not isinstance(values, (list, tuple)):
        return np.asarray(values)
    arrays = [np.asarray(value) for value in values]
    shapes = [array.shape for array in arrays]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise UserError(
            f"field 'image' of data['{split}']: image {other} has the shape {shapes[other]}, but"
            f" image 0 has {shapes[0]}: resize them"
        )
    return np.stack(arrays)


FIELD_READERS.register("image", FieldReader(images_from_python, optional=("label",)))
