"""Reconstructions of images by an autoencoder.

Shapes: N images, B images of a batch, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.capabilities import SupportsReconstruction
from aigc_jax.core.objective import Mutables, Params
from aigc_jax.data.fixed_batches import map_batches
from aigc_jax.ops.random import numbered_keys


def reconstruct(
    objective: SupportsReconstruction,
    params: Params,
    mutables: Mutables,
    images: np.ndarray,
    labels: np.ndarray | None,
    size: int = 128,
) -> np.ndarray:
    """Encodes and decodes images, each with its own random key.

    Args:
      objective: the autoencoder.
      params: `{player: parameters}`.
      mutables: `{player: mutables}`.
      images: uint8 (N, H, W, C).
      labels: their classes (N,), if they have any.
      size: images of a batch.

    Returns:
      uint8 (N, H, W, C).
    """
    compiled = jax.jit(objective.reconstruct)

    def batch_of(index_B: np.ndarray, real_B: np.ndarray) -> jax.Array:
        batch = {"image": images[index_B], "weight": real_B.astype(np.float32)}
        if labels is not None:
            batch["label"] = labels[index_B].astype(np.int32)
        key_B = numbered_keys(jax.random.key(0), jnp.asarray(index_B))
        return compiled(params, mutables, batch, key_B)

    return map_batches(batch_of, len(images), size)
