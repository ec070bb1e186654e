"""Generated features beside real ones: every distance, and how sure it is.

Shapes: N generated and M real feature vectors of F numbers each.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from aigc_jax.core.bootstrap import bootstrap
from aigc_jax.modalities.image.metrics import distances
from aigc_jax.modalities.image.metrics.distances import DENSITY_K, NORMAL, PRECISION_K, Moments

NEAR = 10_000  # vectors on either side for what takes N · M distances; of more, the first
COVERINGS = {"precision": "N", "recall": "M", "density": "N", "coverage": "M"}  # per which vector
FEWEST = DENSITY_K + 1  # vectors on either side


class Figure(NamedTuple):
    """A number, and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Real:
    """Real features that others are compared with.

    Attributes:
      feature_MF: the vectors, or the first `NEAR` of them.
      moments: of all of them.
    """

    feature_MF: np.ndarray
    moments: Moments

    @classmethod
    def of(cls, feature_MF: np.ndarray) -> "Real":
        return cls(feature_MF[:NEAR], distances.moments(feature_MF))

    @functools.cached_property
    def radii(self) -> dict[int, np.ndarray]:
        return distances.squared_radii(self.feature_MF, (PRECISION_K, DENSITY_K))


def compare(feature_NF: np.ndarray, real: Real) -> tuple[dict[str, Figure], dict[str, float]]:
    """All metrics of generated features, and the kernel distance's spread over its subsets.

    The intervals of the Fréchet and kernel distances say how they would vary with other generated
    and other real vectors, by their first-order limit laws; those of precision and density with
    other generated vectors, those of recall and coverage with other real ones, by a bootstrap of
    the vectors. The other side stays as it is.

    Returns:
      `{metric: figure}` and `{"kernel": standard deviation}`.
    """
    near, y = feature_NF[:NEAR], real.feature_MF
    own = distances.moments(feature_NF)
    distance = distances.frechet(own, real.moments)
    error = distances.frechet_error(near, y, own, real.moments)
    mmd, spread = distances.kernel_distance(near, y)
    mmd_error = np.hypot(distances.kernel_error(near, y), spread / np.sqrt(distances.SUBSETS))
    found = {"frechet": around(distance, error, 0.0), "kernel": around(mmd, mmd_error)}
    inside = distances.coverings(near, y, real.radii)
    for name, side in COVERINGS.items():
        each = np.asarray(getattr(inside, f"{name}_{side}"), np.float64)
        found[name] = Figure(float(each.mean()), *bootstrap(each, np.ones(len(each))))
    return found, {"kernel": spread}


def around(value: float, error: float, least: float = -np.inf) -> Figure:
    """The interval of a normal distribution; nothing of it is below `least`."""
    reach = NORMAL * float(error)
    return Figure(value, max(value - reach, least), value + reach)


def metric_names(network: str) -> dict[str, str]:
    """What each metric is called in a network's features: only Inception's are FID and KID."""
    names = {k: f"{k}_{network}" for k in ("frechet", "kernel", *COVERINGS)}
    return names | ({"frechet": "fid", "kernel": "kid"} if network == "inception" else {})
