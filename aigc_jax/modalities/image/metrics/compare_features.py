"""Compares generated features with real ones: distances and their confidence intervals.

Shapes: N generated and M real feature vectors of F numbers each.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from aigc_jax.core.bootstrap import bootstrap
from aigc_jax.modalities.image.metrics import distances
from aigc_jax.modalities.image.metrics.distances import DENSITY_K, NORMAL, PRECISION_K, Moments

MAX_PAIRWISE = 10_000  # vectors on either side of N · M distances; of more, the first are used
PRDC_SIDES = {"precision": "N", "recall": "M", "density": "N", "coverage": "M"}  # averaged over
MIN_VECTORS = DENSITY_K + 1  # on either side


class Estimate(NamedTuple):
    """A number, and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class RealFeatures:
    """Features of real images, with which others are compared.

    Attributes:
      feature_MF: the vectors, or the first `MAX_PAIRWISE` of them.
      moments: of all of them.
    """

    feature_MF: np.ndarray
    moments: Moments

    @classmethod
    def of(cls, feature_MF: np.ndarray) -> "RealFeatures":
        """The features and their moments."""
        return cls(feature_MF[:MAX_PAIRWISE], distances.moments(feature_MF))

    @functools.cached_property
    def radii(self) -> dict[int, np.ndarray]:
        """`{k: squared distance (M,) of each vector's k-th nearest neighbour}`."""
        return distances.squared_radii(self.feature_MF, (PRECISION_K, DENSITY_K))


def compare(
    feature_NF: np.ndarray, real: RealFeatures
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """All metrics of generated features, and the kernel distance's spread over its subsets.

    The intervals of the Fréchet and kernel distances say how they would vary with other generated
    and other real vectors, by their first-order limit laws; those of precision and density with
    other generated vectors, those of recall and coverage with other real ones, by a bootstrap of
    the vectors. The other side stays as it is.

    Returns:
      `{metric: estimate}` and `{"kernel_distance": standard deviation}`.
    """
    near, y = feature_NF[:MAX_PAIRWISE], real.feature_MF
    own = distances.moments(feature_NF)
    distance = distances.frechet(own, real.moments)
    error = distances.frechet_error(near, y, own, real.moments)
    mmd, spread = distances.kernel_distance(near, y)
    mmd_error = np.hypot(distances.kernel_error(near, y), spread / np.sqrt(distances.SUBSETS))
    found = {
        "frechet_distance": around(distance, error, 0.0),
        "kernel_distance": around(mmd, mmd_error),
    }
    inside = distances.prdc(near, y, real.radii)
    for name, side in PRDC_SIDES.items():
        each = np.asarray(getattr(inside, f"{name}_{side}"), np.float64)
        found[name] = Estimate(float(each.mean()), *bootstrap(each, np.ones(len(each))))
    return found, {"kernel_distance": spread}


def around(value: float, error: float, least: float = -np.inf) -> Estimate:
    """The 95% interval of a normal distribution, cut off below `least`."""
    reach = NORMAL * float(error)
    return Estimate(value, max(value - reach, least), value + reach)


def metric_names(network: str) -> dict[str, str]:
    """The name of each metric in a network's features: only Inception's are FID and KID."""
    names = {k: f"{k}_{network}" for k in ("frechet_distance", "kernel_distance", *PRDC_SIDES)}
    inception = {"frechet_distance": "fid", "kernel_distance": "kid"}
    return names | (inception if network == "inception" else {})
