"""Guidance of diffusion sampling.

Classifier-free guidance (Ho & Salimans 2022) and autoguidance (Karras et al. 2024), in an interval
of noise levels if asked (Kynkäänniemi et al. 2024).
Shapes: N samples.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions, with_null


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["denoise"]
)
@dataclasses.dataclass(frozen=True)
class GuidanceModel:
    """Another model's denoiser: denoise(params, x, σ_N, conditions)."""

    denoise: Callable[..., jax.Array]
    params: Any


@flax.struct.dataclass
class Guidance:
    """Scale and interval of guidance; all may be traced.

    Attributes:
      scale: g of D₀ + g (D − D₀); 1: none.
      low: the lowest σ at which there is guidance.
      high: the highest; 0: no bound.
    """

    scale: jax.Array | float = 1.0
    low: jax.Array | float = 0.0
    high: jax.Array | float = 0.0

    def is_on(self, sigma: jax.Array) -> jax.Array:
        """Whether σ is guided."""
        inside = (sigma >= self.low) & ((sigma <= self.high) | (jnp.asarray(self.high) == 0))
        return (jnp.asarray(self.scale) != 1) & inside


Number = jax.Array | float
Network = Callable[..., jax.Array]  # (*arrays of N rows, conditions) → N rows


def classifier_free(
    network: Network, arrays: Sequence[jax.Array], conditions: Conditions, scale: Number
) -> jax.Array:
    """F₀ + g (F − F₀), F₀ without conditions, both in one call of the network.

    Args:
      network: F of `(*arrays, conditions)`.
      arrays: of N rows each.
      conditions: of N rows.
      scale: g.
    """
    twice = [jnp.concatenate([a, a]) for a in arrays]
    conditional, free = jnp.split(network(*twice, with_null(conditions)), 2)
    return free + scale * (conditional - free)
