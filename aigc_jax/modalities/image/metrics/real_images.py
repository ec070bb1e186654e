"""The real images that generated ones are compared with.

Shapes: N images, M held-out and P training images, H height, W width, C channels.
"""

import dataclasses
import functools

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import ArraySpec
from aigc_jax.data.dataset import Dataset, draw_examples
from aigc_jax.data.source import Source, SupportsRowStreams
from aigc_jax.modalities.image.metrics import reference_stats
from aigc_jax.modalities.image.metrics.compare_features import MIN_VECTORS

# Training images among which nearest neighbours are searched, and values of their pixels.
POOL, POOL_VALUES = 100_000, 1 << 27


@dataclasses.dataclass(frozen=True)
class RealImages:
    """A data set's images in random order, so that any first few of them are of all classes.

    Attributes:
      train, held_out: uint8 (P, H, W, C) and (M, H, W, C).
      train_labels, held_out_labels: their classes, if they have any.
    """

    train: np.ndarray
    train_labels: np.ndarray | None
    held_out: np.ndarray
    held_out_labels: np.ndarray | None

    @classmethod
    def of(cls, dataset: Dataset, limit: int) -> "RealImages":
        """At most `limit` held-out images, and as many training images as neighbours need."""
        spec: ArraySpec = dataset.spec  # type: ignore[assignment]
        assert not isinstance(dataset.train, SupportsRowStreams)
        pool = max(limit, min(POOL, POOL_VALUES // int(np.prod(spec.shape))))
        return cls(*gather(dataset.train, pool), *gather(dataset.validation, limit))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images of both splits."""
        return reference_stats.fingerprint(self.train, self.held_out)


def gather(source: Source, limit: int) -> tuple[np.ndarray, np.ndarray | None]:
    """At most `limit` images of a source in random order, with their labels if it has any."""
    examples = draw_examples(source, limit)
    labels = [e["label"] for e in examples if "label" in e]
    return np.stack([e["image"] for e in examples]), np.array(labels) if labels else None


def check_enough(train: int, held_out: int, samples: int) -> None:
    """Raises UserError if there are too few images or samples to compare.

    Args:
      train, held_out: number of images of each split.
      samples: number of generated images.
    """
    if min(train, held_out, samples) < MIN_VECTORS:
        raise UserError(
            f"{train} training and {held_out} held-out images and {samples} samples are too few to"
            f" compare, {MIN_VECTORS} of each are needed: add some, or set"
            " eval.image.fidelity=False when training"
        )


def gaussian_samples(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Images drawn from a Gaussian with each class's pixel mean and covariance, N as given.

    A random combination of the centred images has exactly their covariance; no D × D matrix is
    needed.
    """
    rng = np.random.default_rng(0)
    out = np.empty_like(images)
    for label in np.unique(labels):
        (rows,) = np.nonzero(labels == label)
        flat = images[rows].reshape(len(rows), -1).astype(np.float64)
        mean = flat.mean(0)
        weights = rng.standard_normal((len(rows), len(rows))) / np.sqrt(max(len(rows) - 1, 1))
        drawn = mean + weights @ (flat - mean)
        out[rows] = np.clip(np.round(drawn), 0, 255).astype(np.uint8).reshape(images[rows].shape)
    return out
