"""Moving averages of parameters: exponential ones, and ones with a power-function profile.

A power-function average of relative width σ_rel weighs the parameters after τ of t steps by τ^γ:
its profile grows with the run, and σ_rel, the profile's standard deviation divided by t, does not
change. Snapshots of two of them reconstruct any other width after training (Karras et al. 2024,
EDM2, section 3 and appendix C).
"""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.config import Ema
from aigc_jax.core.objective import Params


def decay(config: Ema, examples: jax.Array, batch_size: int) -> jax.Array:
    """Returns the weight of the old average in one step.

    A half-life in examples makes the average independent of the batch size. During warm-up the
    half-life is `rampup · examples`, so that early parameters are forgotten quickly (Karras et al.
    2022, EDM, appendix F.2).

    Args:
      config: half-life and ramp-up.
      examples: scalar, examples seen before this step.
      batch_size: examples of this step.
    """
    halflife = jnp.float32(config.halflife)
    if config.rampup > 0:
        halflife = jnp.minimum(halflife, config.rampup * examples.astype(jnp.float32))
    return 0.5 ** (batch_size / jnp.maximum(halflife, 1e-8))


def lerp(ema: Params, params: Params, weight: jax.Array) -> Params:
    """Returns `(1 − weight) · ema + weight · params`, leaf by leaf."""
    return jax.tree.map(lambda e, p: e + weight.astype(e.dtype) * (p - e), ema, params)


def sigma_rel_key(sigma_rel: float) -> str:
    """Returns the key of an average in `TrainState.power_ema`."""
    return f"{sigma_rel:g}"


def power_exponent(sigma_rel: float) -> float:
    """Returns γ of the profile τ^γ on [0, 1] whose standard deviation is `sigma_rel`.

    It is the largest root of (γ + 1) = σ_rel² (γ + 2)² (γ + 3).
    """
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_ema_weight(sigma_rel: float, step: jax.Array) -> jax.Array:
    """Returns the weight of the newest parameters after `step` steps, 1 − (1 − 1/step)^(γ + 1).

    It can be as small as 10⁻⁵: computed as a difference from 1 it would lose most digits.
    """
    last = 1 / jnp.maximum(step, 1).astype(jnp.float32)
    return -jnp.expm1((power_exponent(sigma_rel) + 1) * jnp.log1p(-last))


def update_averages(
    config: Ema,
    ema: Params,
    power_ema: dict[str, Params],
    params: Params,
    step: jax.Array,
    batch_size: int,
) -> tuple[Params, dict[str, Params]]:
    """Updates all averages by one step.

    Args:
      config: the averages to keep.
      ema: the exponential average; empty without one.
      power_ema: power-function averages by `sigma_rel_key`.
      params: the new parameters.
      step: int32 scalar, steps taken before this one.
      batch_size: examples of this step.
    """
    if ema:
        examples = step.astype(jnp.float32) * batch_size
        ema = lerp(ema, params, 1 - decay(config, examples, batch_size))
    weights = {sigma_rel_key(s): power_ema_weight(s, step + 1) for s in config.sigma_rels}
    return ema, {key: lerp(old, params, weights[key]) for key, old in power_ema.items()}
