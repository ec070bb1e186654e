"""Reads image files; headers are checked before decoding."""

import contextlib
import struct
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import open_file

MAX_PIXELS = 64_000_000  # larger images are rejected before memory is allocated
# A subset of Pillow's formats: EPS, for example, would start Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
GREY = ("L", "1", "LA", "La")
COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV")


def open_image(file: str) -> Image.Image:
    """Opens and decodes an image (its first frame), and rotates it by its EXIF orientation.

    Raises:
      UserError: if it is damaged, too large, not of 8 bits, or not in one of `FORMATS`.
    """
    with open_file(file) as f:
        image = decode_image(f, shorten(file))
    with _refused(shorten(file)):
        return ImageOps.exif_transpose(image)


def decode_image(f: BinaryIO, where: str, size: tuple[int, int] | None = None) -> Image.Image:
    """Decodes an image without rotation.

    Args:
      f: the encoded image.
      where: its name in messages.
      size: expected (width, height).

    Raises:
      UserError: as `open_image`, or if its size is not `size`.
    """
    with _refused(where):
        _check_size(webp_size(f) or (1, 1), where)
        image = Image.open(f, formats=FORMATS)
        _check_size(image.size, where)
        if size is not None and image.size != size:
            raise UserError(f"{where} is an image of {image.size[0]}×{image.size[1]} pixels")
        if image.mode[0] in "IF":
            raise UserError(f"{where} has more than 8 bits a pixel: convert it to 8 bits")
        if image.mode not in GREY + COLOUR:
            raise UserError(f"{where} has {image.mode} colours: convert it to RGB")
        image.load()
        return image


@contextlib.contextmanager
def _refused(where: str) -> Iterator[None]:
    """Turns exceptions of Pillow into UserErrors, and suppresses its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as e:
        raise UserError(f"{where} is too large ({one_line(e)}): shrink it") from e
    except Exception as e:  # Pillow's decoders raise many types
        raise UserError(
            f"{where} is not a readable image ({one_line(e, 100)}): repair or remove it"
        ) from e


def _check_size(size: tuple[int, int], where: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"{where} claims {size[0]}×{size[1]} pixels: too large, shrink or remove it"
        )


def webp_size(f: BinaryIO) -> tuple[int, int] | None:
    """Returns (width, height) from a WebP header, which Pillow reads after allocating memory.

    Returns None for other files. `f` is rewound to its start.
    """
    head = f.read(30).ljust(30, b"\0")
    f.seek(0)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    if head[12:16] == b"VP8X":  # 24 bits each, of the size − 1
        width, height = (int.from_bytes(head[i : i + 3], "little") + 1 for i in (24, 27))
    elif head[12:16] == b"VP8L":  # 14 bits each, of the size − 1
        (bits,) = struct.unpack_from("<I", head, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif head[12:16] == b"VP8 ":  # 14 bits each, and 2 bits of scale
        width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", head, 26))
    else:
        return None
    return width, height


def colourful(image: Image.Image) -> bool:
    """Returns whether the image's mode can have colours."""
    return image.mode not in GREY


def to_pixels(file: str, shape: tuple[int, int, int], fit: bool) -> np.ndarray:
    """Reads an image as uint8 (H, W, C).

    Args:
      file: its path.
      shape: expected (H, W, C).
      fit: whether to scale it and crop it at the centre to H × W.

    Raises:
      UserError: if it cannot be read or converted, or has another shape.
    """
    height, width, channels = shape
    image = open_image(file)
    with _refused(shorten(file)):
        image = _opaque(image)
        if fit:
            image = _fit(image, (width, height))
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), np.uint8)
        return pixels.reshape(shape)


def _opaque(image: Image.Image) -> Image.Image:
    """Composites an image on white, as colours of transparent pixels are arbitrary."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _fit(image: Image.Image, size: tuple[int, int]) -> Any:
    """Scales an image so that its shorter side fits, then crops it at the centre."""
    image = image.convert("RGB") if image.mode in ("P", "CMYK") else image
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
