"""The steps of diffusion samplers, from one noise level to the next.

In the coordinates x = y + σ n (Karras et al. 2022) DDIM is Euler's method for the probability-flow
ODE, and DDIM with η = 1 is ancestral DDPM sampling; one function serves them all.
Shapes: N samples, … axes of one; σ a scalar.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.registry import Registry

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # (x (N, …), σ) → D(x; σ)
FlowMap = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x, σ, σ next) → x next
Number = jax.Array | float


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise that is added and removed again on the way (EDM, algorithm 2).

    Attributes:
      amount: S_churn, spread over the steps; 0: none.
      low: S_min, the lowest σ at which noise is added.
      high: S_max, the highest; 0: no bound.
      noise: S_noise, the standard deviation of the added noise.
    """

    amount: Number = 0.0
    low: Number = 0.0
    high: Number = 0.0
    noise: Number = 1.0

    def add(
        self, x: jax.Array, sigma: jax.Array, noise: jax.Array, steps: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """x with more noise, and its σ."""
        gamma = jnp.minimum(self.amount / steps, jnp.sqrt(2.0) - 1)
        here = (sigma >= self.low) & ((sigma <= self.high) | (jnp.asarray(self.high) == 0))
        gamma = jnp.where(here, gamma, 0)
        # √((1 + γ)² − 1) in a form that rounding cannot make negative
        more = sigma * jnp.sqrt(gamma * (2 + gamma))
        return x + self.noise * more * noise, sigma * (1 + gamma)


@dataclasses.dataclass(frozen=True)
class InitImage:
    """Examples to begin with: image-to-image and inpainting.

    Attributes:
      image: (N, *spatial, C), clean.
      strength: how far back to noise they go, 0…1 of the steps (SDEdit, Meng et al. 2022); with 0
        they stay as they are, with 1 nothing of what is generated depends on them.
      inpaint_mask: (N, *spatial), True where to generate; None: everywhere. Elsewhere the denoised
        example is replaced by the given one, so that the trajectory has the noise of each level.
      resample: how often each step is taken, going back to its noise in between, so that what is
        generated and what is kept agree (RePaint, Lugmayr et al. 2022); 1: once.
    """

    image: jax.Array
    strength: Number = 1.0
    inpaint_mask: jax.Array | None = None
    resample: jax.Array | int = 1

    def keep(self, x: jax.Array, kept: jax.Array) -> jax.Array:
        """x where it is generated, and `kept` elsewhere."""
        return x if self.inpaint_mask is None else jnp.where(self.inpaint_mask[..., None], x, kept)


@dataclasses.dataclass(frozen=True)
class Step:
    """What a sampler knows of a step.

    Attributes:
      sigma: σ before the step.
      sigma_next: σ after it; 0 in the last step.
      sigma_previous: σ one step ago; `sigma` where there is no such step.
      steps: number of all steps.
      noise: (N, …) standard normal, of this step's own.
      eta: DDIM's share of fresh noise.
      churn: noise on the way.
      init_image: examples to begin with, or None.
      flow_map: the model's, or None.
    """

    sigma: jax.Array
    sigma_next: jax.Array
    sigma_previous: jax.Array
    steps: jax.Array
    noise: jax.Array
    eta: Number
    churn: Churn
    init_image: InitImage | None = None
    flow_map: FlowMap | None = None


class Sampler:
    """A sampler: subclass it and register an instance in `SAMPLERS` for one of your own."""

    def init(self, x: jax.Array) -> Any:
        """What the first step remembers of the steps before it; any pytree of fixed shapes."""
        return ()

    def step(
        self, denoiser: Denoiser, x: jax.Array, step: Step, memory: Any
    ) -> tuple[jax.Array, Any]:
        """From x at `step.sigma` to x at `step.sigma_next`, and the memory of the next step."""
        raise NotImplementedError


class Heun(Sampler):
    """EDM, algorithm 2: second order, two evaluations per step but the last."""

    def step(self, denoiser, x, step, memory):
        x, sigma = step.churn.add(x, step.sigma, step.noise, step.steps)
        return heun_step(denoiser, x, sigma, step.sigma_next), memory


class Euler(Sampler):
    """First order, with the churn of EDM."""

    def step(self, denoiser, x, step, memory):
        x, sigma = step.churn.add(x, step.sigma, step.noise, step.steps)
        denoised = denoiser(x, sigma)
        return ddim_step(denoised, x, step.noise, sigma, step.sigma_next, 0.0), memory


@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """Song et al. 2021.

    Attributes:
      eta: η; None: that of the options. 1 is ancestral sampling (Ho et al. 2020).
    """

    eta: float | None = None

    def step(self, denoiser, x, step, memory):
        eta = step.eta if self.eta is None else self.eta
        denoised = denoiser(x, step.sigma)
        return ddim_step(denoised, x, step.noise, step.sigma, step.sigma_next, eta), memory


class DPMSolverPlusPlus2M(Sampler):
    """DPM-Solver++ (Lu et al. 2022, algorithm 2): second order, one evaluation per step."""

    def init(self, x):
        return jnp.zeros_like(x)

    def step(self, denoiser, x, step, memory):
        denoised = denoiser(x, step.sigma)
        x = dpm_step(denoised, memory, x, step.sigma_previous, step.sigma, step.sigma_next)
        return x, denoised


class FlowMapSampler(Sampler):
    """The flow map of the model itself (MeanFlow, Geng et al. 2025)."""

    def step(self, denoiser, x, step, memory):
        if step.flow_map is None:
            raise UserError(
                "sample.sampler=meanflow needs a model that has learned a flow map: set"
                " objective.name=meanflow, or choose another sample.sampler"
            )
        x, init_image = step.flow_map(x, step.sigma, step.sigma_next), step.init_image
        if init_image is not None:
            x = init_image.keep(x, init_image.image + step.sigma_next * step.noise)
        return x, memory


SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    "sample.sampler",
    {
        "heun": Heun(),
        "euler": Euler(),
        "ddim": DDIM(),
        "ancestral": DDIM(eta=1.0),
        "dpmpp_2m": DPMSolverPlusPlus2M(),
        "meanflow": FlowMapSampler(),
    },
)


def heun_step(
    denoiser: Denoiser, x: jax.Array, sigma: jax.Array, sigma_next: jax.Array
) -> jax.Array:
    """The trapezoidal rule for dx/dσ = (x − D(x; σ)) / σ; Euler's where it ends at σ = 0."""
    slope = (x - denoiser(x, sigma)) / sigma
    euler = x + (sigma_next - sigma) * slope

    def correct():
        safe = jnp.maximum(sigma_next, 1e-20)
        return x + (sigma_next - sigma) * (slope + (euler - denoiser(euler, safe)) / safe) / 2

    return jax.lax.cond(sigma_next > 0, correct, lambda: euler)


def ddim_step(
    denoised: jax.Array,
    x: jax.Array,
    noise: jax.Array,
    sigma: jax.Array,
    sigma_next: jax.Array,
    eta: Number,
) -> jax.Array:
    """DDIM, eq. 12: with η = 1 the posterior q(x_s | x_t, y) of DDPM, with η = 0 Euler's step."""
    ratio = (sigma_next / sigma) ** 2
    up = eta * jnp.sqrt(ratio * jnp.maximum(sigma**2 - sigma_next**2, 0))
    down = jnp.sqrt(jnp.maximum(sigma_next**2 - up**2, 0))
    return denoised + down / sigma * (x - denoised) + up * noise


def dpm_step(
    denoised: jax.Array,
    denoised_previous: jax.Array,
    x: jax.Array,
    sigma_previous: jax.Array,
    sigma: jax.Array,
    sigma_next: jax.Array,
) -> jax.Array:
    """DPM-Solver++(2M): D is extrapolated linearly in ln σ from the last step and this one.

    Args:
      denoised: D at `sigma`.
      denoised_previous: D at `sigma_previous`.
      x: at `sigma`.
      sigma_previous: σ one step ago; without such a step it is `sigma`.
      sigma: σ now.
      sigma_next: σ after the step; where it is 0, and in the first step, D is taken as constant.
    """
    length = jnp.log(sigma / jnp.maximum(sigma_next, 1e-20))
    length_previous = jnp.log(sigma_previous / sigma)
    linear = (length_previous > 0) & (sigma_next > 0)
    ratio = jnp.where(linear, length / jnp.where(linear, length_previous, 1), 0)
    extrapolated = denoised + ratio / 2 * (denoised - denoised_previous)
    return extrapolated + sigma_next / sigma * (x - extrapolated)
