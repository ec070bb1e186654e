"""What a critic remembers from step to step: how it scored, how much is augmented, its norms.

Everything changes once per step, at its first turn, from sums over the whole step before. So it is
the same however a step's batch is cut into microbatches and devices.
"""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.ops import spectral_norm as spectral

State = dict[str, Any]


def start(params: Any, key: jax.Array, probability: float, spectral_norm: bool) -> State:
    """The state before the first step.

    Args:
      params: the critic's.
      key: for the vectors of the power iteration.
      probability: of augmentation, at first.
      spectral_norm: whether there are such vectors.
    """
    zero = jnp.float32(0)
    return {
        "step": jnp.int32(-1),
        "sums": dict.fromkeys(("real", "fake", "above", "weight"), zero),
        "middle": zero,
        "probability": jnp.float32(probability),
        "vectors": spectral.init_vectors(params, key) if spectral_norm else {},
    }


def begin(
    state: State, params: Any, step: jax.Array, target: float, speed: float, limit: float
) -> State:
    """The state in a turn of `step`.

    `middle` becomes the middle between the mean scores of real and of generated images in the step
    before. The probability of augmentation goes up by `speed` if more of the real images were above
    the middle of their time than the target asks for, and down if fewer were (Karras et al. 2020,
    ADA, section 3, whose critics have their middle at 0). The power iteration makes one step.

    Args:
      state: of the last turn.
      params: the critic's.
      step: int32 scalar.
      target: of r = E[sign(score of a real image − middle)]; 0: the probability stays.
      speed: of the probability, per step.
      limit: the highest probability.
    """
    sums, fresh = state["sums"], state["step"] != step
    known = fresh & (sums["weight"] > 0)
    weight = jnp.where(sums["weight"] > 0, sums["weight"], 1)
    middle = (sums["real"] + sums["fake"]) / (2 * weight)
    probability = state["probability"]
    if target:
        sign = jnp.sign(2 * sums["above"] / weight - 1 - target)
        moved = jnp.clip(probability + speed * sign, 0, limit)
        probability = jnp.where(known, moved, probability)
    vectors = state["vectors"]
    if vectors:
        vectors = jax.tree.map(
            lambda new, old: jnp.where(fresh, new, old),
            spectral.power_iteration(params, vectors),
            vectors,
        )
    return {
        "step": jnp.int32(step),
        "sums": jax.tree.map(lambda x: jnp.where(fresh, 0, x), sums),
        "middle": jnp.where(known, middle, state["middle"]),
        "probability": probability,
        "vectors": vectors,
    }


def seen(state: State, real_B: jax.Array, fake_B: jax.Array, weight_B: jax.Array) -> State:
    """The state after these scores."""

    def weighted(x_B: jax.Array) -> jax.Array:
        # A masked score may be anything, even infinite; and no gradient flows into a state. A mean,
        # because the mutables of several devices are averaged.
        return jnp.where(weight_B != 0, jax.lax.stop_gradient(x_B) * weight_B, 0).mean()

    new = {
        "real": weighted(real_B),
        "fake": weighted(fake_B),
        "above": weighted((real_B > state["middle"]).astype(jnp.float32)),
        "weight": weight_B.mean(),
    }
    return {**state, "sums": {name: state["sums"][name] + x for name, x in new.items()}}
