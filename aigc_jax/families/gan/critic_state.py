"""The critic's state from step to step: running scores, augmentation, vectors of spectral norm.

Everything changes once per step, at its first turn, from sums over the whole step before. So it is
the same however the batch of a step is cut into microbatches and devices.
"""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.ops import spectral_norm

State = dict[str, Any]


def init_state(params: Any, key: jax.Array, probability: float, normalize: bool) -> State:
    """The state before the first step.

    Args:
      params: of the critic.
      key: of the vectors of the power iteration.
      probability: of augmentation at first.
      normalize: whether the critic has spectral norm, and so those vectors.
    """
    zero = jnp.float32(0)
    return {
        "step": jnp.int32(-1),
        "sums": dict.fromkeys(("real", "fake", "above", "weight"), zero),
        "decision_boundary": zero,
        "probability": jnp.float32(probability),
        "vectors": spectral_norm.init_vectors(params, key) if normalize else {},
    }


def begin_step(
    state: State, params: Any, step: jax.Array, target: float, speed: float, limit: float
) -> State:
    """The state in a turn of `step`; it changes in the first turn only.

    `decision_boundary` becomes the midpoint of the mean scores of real and of generated examples in
    the step before. The probability of augmentation rises by `speed` if more of the real examples
    were above the boundary than the target asks for, and falls if fewer were (Karras et al. 2020,
    ADA, section 3, whose critics have their boundary at 0). The power iteration makes one step.

    Args:
      state: of the last turn.
      params: of the critic.
      step: int32 scalar.
      target: of r = E[sign(score of a real example − boundary)]; 0: the probability stays.
      speed: of the probability, per step.
      limit: the highest probability.
    """
    sums, fresh = state["sums"], state["step"] != step
    known = fresh & (sums["weight"] > 0)
    weight = jnp.where(sums["weight"] > 0, sums["weight"], 1)
    boundary = (sums["real"] + sums["fake"]) / (2 * weight)
    probability = state["probability"]
    if target:
        sign = jnp.sign(2 * sums["above"] / weight - 1 - target)
        moved = jnp.clip(probability + speed * sign, 0, limit)
        probability = jnp.where(known, moved, probability)
    vectors = state["vectors"]
    if vectors:
        vectors = jax.tree.map(
            lambda new, old: jnp.where(fresh, new, old),
            spectral_norm.power_iteration(params, vectors),
            vectors,
        )
    return {
        "step": jnp.int32(step),
        "sums": jax.tree.map(lambda x: jnp.where(fresh, 0, x), sums),
        "decision_boundary": jnp.where(known, boundary, state["decision_boundary"]),
        "probability": probability,
        "vectors": vectors,
    }


def update(state: State, real_B: jax.Array, fake_B: jax.Array, weight_B: jax.Array) -> State:
    """The state with these scores added to the sums of its step.

    Args:
      state: from `begin_step`.
      real_B: scores of real examples.
      fake_B: scores of generated examples.
      weight_B: of the examples.
    """

    def weighted(x_B: jax.Array) -> jax.Array:
        # A masked score may be anything, even infinite; and no gradient flows into a state. A mean,
        # because the mutables of several devices are averaged.
        return jnp.where(weight_B != 0, jax.lax.stop_gradient(x_B) * weight_B, 0).mean()

    new = {
        "real": weighted(real_B),
        "fake": weighted(fake_B),
        "above": weighted((real_B > state["decision_boundary"]).astype(jnp.float32)),
        "weight": weight_B.mean(),
    }
    return {**state, "sums": {name: state["sums"][name] + x for name, x in new.items()}}
