"""How images are brought to the size that a published network looks at.

The rule moves a distance by more than a good model differs from a better one (Parmar et al. 2022),
so each has a name, which stands beside every number.
Shapes: N images, H height, W width, C channels.
"""

import numpy as np
from PIL import Image

RULES = ("clean-fid", "torch-fidelity")


def resize(images_NHWC: np.ndarray, size: int, rule: str) -> np.ndarray:
    """uint8 images (N, H, W, 1 or 3) → float32 (N, size, size, 3) in 0 … 255; grey becomes RGB.

    Args:
      images_NHWC: the images.
      size: pixels a side.
      rule: "clean-fid": Pillow's bicubic filter, which is widened when it shrinks an image, in
        floats that are clipped and not rounded. "torch-fidelity": TensorFlow 1's bilinear one,
        which is not, and whose grid begins at the corner of the first pixel.
    """
    resized = {"clean-fid": _pillow, "torch-fidelity": _tensorflow}[rule](images_NHWC, size)
    return np.broadcast_to(resized, (*resized.shape[:3], 3))


def _pillow(images: np.ndarray, size: int) -> np.ndarray:
    out = np.empty((len(images), size, size, images.shape[-1]), np.float32)
    for n, image in enumerate(images.astype(np.float32)):
        for c in range(image.shape[-1]):
            channel = Image.fromarray(np.ascontiguousarray(image[..., c]))
            out[n, ..., c] = np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC))
    return out.clip(0, 255)


def _tensorflow(images: np.ndarray, size: int) -> np.ndarray:
    rows, columns = (_between(n, size) for n in images.shape[1:3])
    return _mix(_mix(images.astype(np.float32), columns, 2), rows, 1)


def _between(count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel: the old ones before and after it, and how far it is on its way."""
    place = np.arange(size, dtype=np.float32) * np.float32(count / size)
    before = np.minimum(place.astype(np.int64), count - 1)
    return before, np.minimum(before + 1, count - 1), place - before.astype(np.float32)


def _mix(x: np.ndarray, between: tuple[np.ndarray, ...], axis: int) -> np.ndarray:
    before, after, share = between
    first = x.take(before, axis)
    shape = [1] * x.ndim
    shape[axis] = -1
    return first + (x.take(after, axis) - first) * share.reshape(shape)
