"""The training images that generated ones are nearest to, so that memorising is seen.

Shapes: N generated, P training and M held-out images, F features.
"""

import dataclasses
import os

import numpy as np
from PIL import Image, ImageDraw

from aigc_jax.core.files import atomic_path
from aigc_jax.modalities.image.metrics import distances
from aigc_jax.modalities.image.metrics.compare_features import Estimate, around

MAX_NEIGHBOURS = 2000  # generated and held-out images whose neighbours are searched
SIDE = 32  # pixels to which larger images are shrunk before their pixels are compared
SHOWN, NEAREST = 10, 3  # rows of the picture, neighbours in each


def pixels(images_NHWC: np.ndarray) -> np.ndarray:
    """float32 (N, F) in [0, 1]: the pixels, of large images the means of squares of them."""
    x = images_NHWC.astype(np.float32) / 255
    n, h, w, c = x.shape
    r = -(-max(h, w) // SIDE)
    if r > 1 and min(h, w) >= r:
        cut = x[:, : h // r * r, : w // r * r]
        x = cut.reshape(n, h // r, r, w // r, r, c).mean((2, 4))
    return x.reshape(n, -1)


@dataclasses.dataclass(frozen=True)
class Space:
    """Training vectors, and how far held-out ones are from them.

    Attributes:
      train_PF: the training vectors.
      held_out_M: the distance of each held-out vector from the nearest of them.
    """

    train_PF: np.ndarray
    held_out_M: np.ndarray

    @classmethod
    def of(cls, train_PF: np.ndarray, held_out_MF: np.ndarray) -> "Space":
        _, away_M1 = distances.nearest(held_out_MF[:MAX_NEIGHBOURS], train_PF)
        return cls(train_PF, away_M1[:, 0])

    def nearest(self, vector_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (N, K) and distances (N, K) of the nearest training vectors."""
        return distances.nearest(vector_NF[:MAX_NEIGHBOURS], self.train_PF, NEAREST)


def copying(generated_N: np.ndarray, held_out_M: np.ndarray) -> Estimate:
    """How often a generated image is nearer to the training images than a held-out one is.

    P(L(generated) < L(held out)) + P(=) / 2 with L the distance to the nearest training image: the
    statistic of Meehan, Chaudhuri & Dasgupta 2020 (section 3), as a probability. A half where
    nothing is copied, 1 where all is; below a half, samples are farther off than real images are.
    Blurred images are near to many in pixels: look at both spaces and at the picture.
    The interval is that of DeLong, DeLong & Clarke-Pearson 1988, of both sets.

    Args:
      generated_N, held_out_M: distances to the nearest training image.
    """
    ordered_M, ordered_N = np.sort(held_out_M), np.sort(generated_N)
    farther_N = 1 - _rank(ordered_M, generated_N)
    nearer_M = _rank(ordered_N, held_out_M)
    error = np.sqrt(farther_N.var() / len(farther_N) + nearer_M.var() / len(nearer_M))
    found = around(float(farther_N.mean()), float(error))
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0))


def _rank(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of `ordered` that is below each value; what equals it counts half."""
    below = np.searchsorted(ordered, values, "left")
    return (below + np.searchsorted(ordered, values, "right")) / 2 / len(ordered)


def picture(
    generated_NHWC: np.ndarray,
    train_PHWC: np.ndarray,
    found: dict[str, tuple[np.ndarray, np.ndarray]],
) -> Image.Image:
    """Rows of a generated image and its nearest training images in each space, with distances.

    Half of the rows are the images that are nearest to a training image in the last space, the
    other half the first ones.

    Args:
      generated_NHWC, train_PHWC: uint8 images.
      found: `{space: numbers and distances}` of `Space.nearest`.
    """
    closest = np.argsort(list(found.values())[-1][1][:, 0], kind="stable")[: SHOWN // 2].tolist()
    rest = [n for n in range(min(len(generated_NHWC), SHOWN)) if n not in closest]
    rows = closest + rest[: SHOWN - len(closest)]
    height, width = generated_NHWC.shape[1:3]
    scale = max(1, 64 // max(height, width))
    tall, wide = max(height * scale, 8), max(width * scale, 48)
    step = tall + 16
    columns = 1 + sum(order.shape[1] for order, _ in found.values())
    sheet = Image.new("RGB", ((wide + 6) * columns + 6 + 12 * len(found), step * len(rows) + 22))
    sheet.paste("white", (0, 0, *sheet.size))
    draw = ImageDraw.Draw(sheet)

    def place(image: np.ndarray, left: int, top: int, text: str) -> None:
        rgb = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(scale, 0).repeat(scale, 1)
        sheet.paste(Image.fromarray(rgb), (left, top))
        draw.text((left, top + tall + 1), text, "black")

    for i, n in enumerate(rows):
        top, left = 20 + i * step, 6
        place(generated_NHWC[n], left, top, f"sample {n}")
        for space, (order, away) in found.items():
            left += 12
            if i == 0:
                draw.text((left + wide + 6, 4), f"nearest training images, {space}", "black")
            for k in range(order.shape[1]):
                left += wide + 6
                place(train_PHWC[order[n, k]], left, top, f"{away[n, k]:.3g}")
    return sheet


def save(sheet: Image.Image, path: str) -> None:
    """Writes a PNG, whole or not at all."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def metrics(
    found: dict[str, tuple[np.ndarray, np.ndarray]], spaces: dict[str, Space]
) -> dict[str, float]:
    """`{"copying_SPACE": …, "…_low": …, "…_high": …}`."""
    result: dict[str, float] = {}
    for name, (_, away) in found.items():
        value, low, high = copying(away[:, 0], spaces[name].held_out_M)
        result |= {
            f"copying_{name}": value,
            f"copying_{name}_low": low,
            f"copying_{name}_high": high,
        }
    return result
