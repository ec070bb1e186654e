"""Decodes images of TFDS data sets."""

import io
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.modalities.image.image_files import decode_image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode by number of channels


def decode_tfds_image(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes an image (H, W, C) after comparing its header with `shape`."""
    image = decode_image(io.BytesIO(data), "it", size=(shape[1], shape[0]))
    return np.asarray(image.convert(MODES[shape[2]]), np.uint8).reshape(shape)


def check_images(features: Any, where: str) -> None:
    """Raises UserError unless the images are uint8 of one shape."""
    shape, dtype = features["image"].shape, np.dtype(features["image"].np_dtype)
    valid = len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    if not valid or dtype != np.uint8 or shape[2] not in MODES:
        raise UserError(
            f"the images of {where} must be uint8 of one shape (height, width, colours), but they"
            f" are {dtype} {shorten(shape, 80)}: prepare them with aigc prepare --image_size=N"
        )
