"""Grids of images, and their PNG files.

Shapes: N images, H height, W width, C channels.
"""

import math
import os

import numpy as np
from PIL import Image

from aigc_jax.core.files import atomic_path

TALLEST = 96  # height in pixels up to which small images are enlarged


def image_grid(images_NHWC: np.ndarray, columns: int = 0, gap: int = 2) -> Image.Image:
    """Arranges uint8 images (N, H, W, 1 or 3) in a grid; enlarges small ones by integer factors.

    Args:
      images_NHWC: the images, row by row.
      columns: number of columns; 0: 10 or √N.
      gap: white pixels between images, at least 1.
    """
    n, height, width, colours = images_NHWC.shape
    gap = max(gap, 1)
    columns = columns or (10 if n % 10 == 0 else math.ceil(math.sqrt(n)))
    rows = -(-n // columns)
    scale = max(1, min(TALLEST // height, 900 // (columns * width)))
    sheet = np.full(
        (rows * (height * scale + gap) + gap, columns * (width * scale + gap) + gap, colours),
        255,
        np.uint8,
    )
    large = images_NHWC.repeat(scale, 1).repeat(scale, 2)
    for i, image in enumerate(large):
        top = gap + i // columns * (height * scale + gap)
        left = gap + i % columns * (width * scale + gap)
        sheet[top : top + height * scale, left : left + width * scale] = image
    return Image.fromarray(sheet[..., 0] if colours == 1 else sheet)


def save_images(images_NHWC: np.ndarray, path: str) -> str:
    """Writes a PNG grid atomically; returns its path."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_path(path) as temporary:
        image_grid(images_NHWC).save(temporary, format="PNG")
    return path
