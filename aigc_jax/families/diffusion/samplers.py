"""Diffusion sampling: from noise to examples, given a denoiser. The number of steps is traced.

In the coordinates x = y + σ n (Karras et al. 2022) every sampler goes down the same noise levels;
`sampler_steps.SAMPLERS` holds the steps that they take.
Shapes: N samples, … axes of one; σ a scalar.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.families.diffusion.sampler_steps import (
    SAMPLERS,
    Churn,
    Denoiser,
    FlowMap,
    InitImage,
    Number,
    Step,
)
from aigc_jax.families.diffusion.sigma_schedules import Sigmas
from aigc_jax.ops.random import fold, normal

RESAMPLE = 1 << 30  # folded into the keys for the noise of resampling; no step has this number


def sample(
    denoiser: Denoiser,
    sigmas: Sigmas,
    key_N: jax.Array,
    shape: tuple[int, ...],
    steps: Number,
    *,
    sampler: str = "heun",
    eta: Number = 0.0,
    churn: Churn | None = None,
    init_image: InitImage | None = None,
    flow_map: FlowMap | None = None,
) -> jax.Array:
    """Samples (N, *shape) by following a trajectory from noise down the noise levels.

    Args:
      denoiser: D(x; σ).
      sigmas: σ_i of the steps; σ_0 is where the trajectory starts.
      key_N: one random key per sample.
      shape: of one sample.
      steps: scalar, number of steps; a change of it does not recompile.
      sampler: one of `SAMPLERS`.
      eta: DDIM's share of fresh noise.
      churn: noise that heun and euler add on the way.
      init_image: examples to begin with; None: from pure noise.
      flow_map: of a model that has one (MeanFlow); needed by the sampler "meanflow".
    """
    steps = jnp.asarray(steps, jnp.int32)
    first, repeats = jnp.int32(0), jnp.int32(1)
    noise = normal(fold(key_N, 0), shape)
    if init_image is None:
        x = sigmas(first, steps) * noise
    else:
        strength = jnp.asarray(init_image.strength)
        first = steps - jnp.round(steps * strength).astype(jnp.int32)
        repeats = jnp.asarray(init_image.resample, jnp.int32)
        noisy = init_image.image + sigmas(first, steps) * noise
        x = jnp.where(strength >= 1, sigmas(first, steps) * noise, noisy)
        x = init_image.keep(x, noisy)
    loop = _SampleLoop(
        denoiser, sigmas, key_N, steps, first, repeats, sampler, eta, churn or Churn(), init_image,
        flow_map,
    )  # fmt: skip
    return loop.run(x)


@dataclasses.dataclass(frozen=True)
class _SampleLoop:
    """The loop over steps, each taken `repeats` times; see `sample`."""

    denoiser: Denoiser
    sigmas: Sigmas
    key_N: jax.Array
    steps: jax.Array
    first: jax.Array
    repeats: jax.Array
    sampler: str
    eta: Number
    churn: Churn
    init_image: InitImage | None
    flow_map: FlowMap | None

    def run(self, x: jax.Array) -> jax.Array:
        """From x at σ of the step `first` to the end."""
        ends = self.first * self.repeats, self.steps * self.repeats
        carry = x, SAMPLERS[self.sampler].init(x)
        x, _ = jax.lax.fori_loop(*ends, self._body, carry)
        return x if self.init_image is None else self.init_image.keep(x, self.init_image.image)

    def _denoised(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """D(x; σ), in which what is kept of the given images is known."""
        denoised, init_image = self.denoiser(x, sigma), self.init_image
        return denoised if init_image is None else init_image.keep(denoised, init_image.image)

    def _body(self, k: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        x, memory = carry
        i, repeat = k // self.repeats, k % self.repeats
        sigma, sigma_next = self.sigmas(i, self.steps), self.sigmas(i + 1, self.steps)
        # After going back to the noise of a step, what was computed before it is of no use.
        known = (i > self.first) & (repeat == 0)
        step = Step(
            sigma=sigma,
            sigma_next=sigma_next,
            sigma_previous=jnp.where(known, self.sigmas(i - 1, self.steps), sigma),
            steps=self.steps,
            noise=normal(fold(self.key_N, k + 1), x.shape[1:]),
            eta=self.eta,
            churn=self.churn,
            init_image=self.init_image,
            flow_map=self.flow_map,
        )
        x, memory = SAMPLERS[self.sampler].step(self._denoised, x, step, memory)
        if self.init_image is not None:
            fresh = normal(fold(fold(self.key_N, RESAMPLE), k), x.shape[1:])
            back = jnp.sqrt(jnp.maximum(sigma**2 - sigma_next**2, 0))
            x = jnp.where(repeat == self.repeats - 1, x, x + back * fresh)
        return x, memory
