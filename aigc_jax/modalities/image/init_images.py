"""Initial images of samples, and inpainting masks."""

import os

import numpy as np
from PIL import Image

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.modalities.image.image_files import open_image, to_pixels

Picture = str | os.PathLike | np.ndarray


def load_init_images(
    image: Picture | None, mask: Picture | None, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Loads uint8 initial images (N, H, W, C) and masks (N, H, W), True where to inpaint.

    Files, images and masks alike, are scaled so that the shorter side fits and cropped at the
    centre, as by `aigc prepare --image_size`. Arrays must have the model's size.

    Args:
      image: a file, or uint8 of shape (H, W), (H, W, C) or (N, H, W, C).
      mask: a file of the same size, white where to inpaint; or booleans, or uint8 where ≥ 128 is
        white, of shape (H, W) or (N, H, W). None for no mask.
      shape: (H, W, C) of the model.

    Raises:
      UserError: if a file cannot be read, or a size or type is wrong.
    """
    if image is None:
        raise UserError("a mask needs an image to inpaint: pass the image too")
    if len(shape) != 3:
        raise UserError(f"this model samples arrays of shape {shape}, not images: omit image")
    height, width, channels = shape
    if isinstance(image, np.ndarray):
        image_NHWC = _array(image, (height, width, channels))
    else:
        if isinstance(mask, str | os.PathLike):
            _check_same_size(image, mask)
        image_NHWC = to_pixels(os.fspath(image), (height, width, channels), fit=True)[None]
    if mask is None:
        return image_NHWC, None
    if isinstance(mask, np.ndarray):
        white = mask if mask.dtype == np.bool_ else mask >= 128
        mask_NHW = white[None] if white.ndim == 2 else white
    else:
        mask_NHW = to_pixels(os.fspath(mask), (height, width, 1), fit=True)[None, :, :, 0] >= 128
    count = max(len(image_NHWC), len(mask_NHW))
    if mask_NHW.shape[1:] != (height, width) or {len(image_NHWC), len(mask_NHW)} - {1, count}:
        found = mask.shape if isinstance(mask, np.ndarray) else mask_NHW.shape[1:]
        raise UserError(
            f"the mask has the shape {found}: it must be ({height}, {width}), or (N, height, width)"
        )
    image_NHWC, mask_NHW = (np.repeat(a, count // len(a), 0) for a in (image_NHWC, mask_NHW))
    return image_NHWC, mask_NHW


def _array(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    pixels = image[..., None] if image.ndim == 2 else image
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not len(pixels):
        raise UserError(
            f"the image is {image.dtype} of the shape {image.shape}: this model needs uint8 of"
            f" {shape}, or several of that shape"
        )
    return pixels


def _check_same_size(image: str | os.PathLike, mask: str | os.PathLike) -> None:
    sizes = [_size(os.fspath(file)) for file in (image, mask)]
    if sizes[0] != sizes[1]:
        (w, h), (mask_w, mask_h) = sizes
        raise UserError(
            f"{shorten(os.fspath(mask))} is a mask of {mask_w}×{mask_h} pixels for an image of"
            f" {w}×{h}: they must have the same size"
        )


def _size(file: str) -> tuple[int, int]:
    image: Image.Image = open_image(file)
    return image.size
