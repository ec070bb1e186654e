"""What an autoencoder makes of given images."""

from typing import Any

import jax
import numpy as np

from aigc_jax.data.fixed_batches import map_batches
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

    def reconstruct(index_B: np.ndarray, real_B: np.ndarray) -> jax.Array:
        batch = {"image": images[index_B], "weight": real_B.astype(np.float32)}
        if labels is not None:
            batch["label"] = labels[index_B].astype(np.int32)
        key_B = numbered_keys(jax.random.key(0), index_B)
        return compiled(params, mutables, batch, key_B)

    return map_batches(reconstruct, len(images), size)
