"""Reference files: real features with where they come from, and the refusal of what does not fit.

A file is an npz of plain arrays and one JSON text; nothing in it is pickled. It holds all that a
data set is judged with, the classifier's weights too, so that two machines that read the same file
measure with the same ruler.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from aigc_jax import __version__
from aigc_jax.core.errors import StorageError, UserError, one_line, shorten
from aigc_jax.core.files import atomic_path
from aigc_jax.core.npz_file import read_npz_file
from aigc_jax.modalities.image.metrics.compare_features import RealFeatures
from aigc_jax.modalities.image.metrics.distances import Moments

FORMAT = 1
HEADER, NETWORK = "header", "network/"  # names of the JSON text and, before theirs, of weights


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What numbers were measured with; figures compare only where these agree.

    Attributes:
      dataset: its name, as in `data.source`.
      fingerprint: of all its images that were looked at, of both splits.
      split: whose images are the reference: "held-out" or "train".
      shape: (H, W, C) of them.
      count: how many of them.
      samples: how many generated images they are compared with; `real_data` is of as many.
      features: the network's name.
      weights: the digest of its weights.
      resize: the rule by which images were brought to its size.
      library: the version that wrote the file; any may read it.
    """

    dataset: str
    fingerprint: str
    split: str
    shape: tuple[int, ...]
    count: int
    samples: int
    features: str
    weights: str
    resize: str
    library: str = __version__


# What makes numbers differ, and what to call it. The data set's name may differ, its images not.
COMPARED = {
    "fingerprint": "the data set",
    "features": "the feature network",
    "split": "the split",
    "shape": "the image shape",
    "resize": "the resize rule",
    "samples": "the number of samples",
    "count": "the number of reference images",
    "weights": "the network's weights",
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a file holds.

    Attributes:
      provenance: where it comes from.
      real: the features.
      train_PF: features of training images, for neighbours.
      real_data: the metrics of real images of the other split.
      network: the arrays of a network that was trained for this data set; empty for others.
    """

    provenance: Provenance
    real: RealFeatures
    train_PF: np.ndarray
    real_data: dict[str, float]
    network: dict[str, np.ndarray]


def fingerprint(*images: np.ndarray) -> str:
    """SHA-256 of sets of images, their shapes included."""
    found = hashlib.sha256()
    for x in images:
        found.update(f"{x.dtype} {x.shape} ".encode())
        found.update(np.ascontiguousarray(x).data)
    return found.hexdigest()


def check_same(path: str, theirs: Provenance, ours: Provenance) -> None:
    """Raises UserError if a file's numbers do not compare with ours."""
    for field, what in COMPARED.items():
        old, new = getattr(theirs, field), getattr(ours, field)
        if old == new:
            continue
        if field == "fingerprint":
            old, new = (f"{p.dataset} ({p.fingerprint[:8]})" for p in (theirs, ours))
        elif field == "weights":
            old, new = old[:8], new[:8]
        raise UserError(
            f"{shorten(path)} does not fit: {what} is {shorten(old, 80)} there and"
            f" {shorten(new, 80)}"
            " here; make them the same, or write another file"
        )


def save(reference: Reference, path: str) -> str:
    """Writes a file, whole or not at all; returns its path.

    Raises:
      StorageError: if it cannot be written.
    """
    header = dataclasses.asdict(reference.provenance) | {
        "format": FORMAT,
        "real_data": reference.real_data,
        "moments_of": reference.real.moments.count,
    }
    arrays = {
        HEADER: np.array(json.dumps(header)),
        "features": reference.real.feature_MF,
        "mean": reference.real.moments.mean,
        "covariance": reference.real.moments.cov,
        "training_features": reference.train_PF,
        **{NETWORK + name: x for name, x in reference.network.items()},
    }
    path = os.path.expanduser(path)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as f:
            np.savez(f, **arrays)  # type: ignore[arg-type]
    except OSError as e:
        raise StorageError(f"{shorten(path)} cannot be written: {e.strerror or e}") from e
    return path


def load(path: str) -> Reference:
    """What a file holds; it may come from anywhere.

    Raises:
      UserError: if it is no such file, or damaged.
    """
    arrays = read_npz_file(path)
    try:
        header = json.loads(str(arrays[HEADER]))
        provenance = _provenance(header)
        features = _matrix(arrays["features"])
        width, counted = features.shape[1], header["moments_of"]
        mean, cov = arrays["mean"], arrays["covariance"]
        train_PF = _matrix(arrays["training_features"])
        if mean.shape != (width,) or cov.shape != (width, width) or train_PF.shape[1] != width:
            raise ValueError("its arrays do not go together")
        if type(counted) is not int or not len(features) <= counted:
            raise ValueError("its counts do not go together")
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("its moments are not finite")
        real_data = {str(k): float(v) for k, v in header["real_data"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise UserError(
            f"{shorten(path)} is not a reference file ({one_line(e)}): write one with aigc eval"
            " --reference=FILE.npz, FILE being a new one"
        ) from e
    network = {
        name.removeprefix(NETWORK): x for name, x in arrays.items() if name.startswith(NETWORK)
    }
    real = RealFeatures(features, Moments(mean, cov, counted))
    return Reference(provenance, real, train_PF, real_data, network)


def _provenance(header: dict[str, Any]) -> Provenance:
    if header["format"] != FORMAT:
        raise ValueError(f"it is of the form {shorten(header['format'], 40)}")
    values = {f.name: header[f.name] for f in dataclasses.fields(Provenance)}
    numbers = [values["count"], values["samples"], *values["shape"]]
    texts = [v for k, v in values.items() if k not in ("count", "samples", "shape")]
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a count of it is none")
    if not all(isinstance(t, str) for t in texts):
        raise ValueError("a text of it is none")
    return Provenance(**{**values, "shape": tuple(values["shape"])})


def _matrix(x: np.ndarray) -> np.ndarray:
    if x.ndim != 2 or x.dtype != np.float32 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError("its features are none")
    return x
