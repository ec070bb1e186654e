"""The exponential moving average of parameters, with its half-life counted in examples."""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.config import Ema


def decay(config: Ema, examples: jax.Array, batch_size: int) -> jax.Array:
    """The weight of the old average in one step.

    Counting in examples makes the average mean the same under every batch size. During warm-up the
    half-life is `rampup · examples`, so that the start of training is soon forgotten (Karras et
    al. 2022, EDM, appendix F.2).

    Args:
      config: half-life and ramp-up.
      examples: scalar, examples seen before this step.
      batch_size: examples of this step.
    """
    halflife = jnp.float32(config.halflife)
    if config.rampup > 0:
        halflife = jnp.minimum(halflife, config.rampup * examples.astype(jnp.float32))
    return 0.5 ** (batch_size / jnp.maximum(halflife, 1e-8))


def update(ema: Any, params: Any, decay: jax.Array) -> Any:
    """`decay · ema + (1 − decay) · params`, leaf by leaf."""
    return jax.tree.map(lambda e, p: e + (1 - decay).astype(e.dtype) * (p - e), ema, params)
