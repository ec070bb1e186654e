"""What an autoencoder makes of given images."""

from typing import Any

import jax
import numpy as np

from aigc_jax.ops.random import numbered_keys


def reconstructed(
    objective: Any,
    params: Any,
    mutables: Any,
    images: np.ndarray,
    labels: np.ndarray | None,
    size: int = 128,
) -> np.ndarray:
    """What an autoencoder makes of images (N, H, W, C): as many, each with its own random key."""
    compiled = jax.jit(objective.reconstruct)
    parts = []
    for first in range(0, len(images), size):
        index = np.arange(first, first + size)
        rows = np.minimum(index, len(images) - 1)  # the last batch is filled up and cut
        batch = {"image": images[rows], "weight": (index < len(images)).astype(np.float32)}
        if labels is not None:
            batch["label"] = labels[rows].astype(np.int32)
        key_B = numbered_keys(jax.random.key(0), index)
        parts.append(np.asarray(compiled(params, mutables, batch, key_B)))
    return np.concatenate(parts)[: len(images)]
