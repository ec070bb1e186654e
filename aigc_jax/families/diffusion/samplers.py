"""Diffusion samplers: from noise to images, given a denoiser. The number of steps is traced.

In the coordinates x = y + σ n (Karras et al. 2022) DDIM is Euler's method for the probability-flow
ODE, and DDIM with η = 1 is ancestral DDPM sampling; one step function serves them all.
Shapes: N images; σ a scalar.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.families.diffusion.sigma_schedules import SigmaSchedule
from aigc_jax.ops.random import fold, normal

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # (x_NHWC, σ) → D(x; σ)
FlowMap = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x_NHWC, σ, σ after) → x after
Number = jax.Array | float

SAMPLERS = ("heun", "euler", "ddim", "ancestral", "dpmpp_2m")
RESAMPLE = 1 << 30  # folded into the keys for the noise of resampling: no step has this number


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise that is added and taken away again on the walk (EDM, algorithm 2).

    Attributes:
      amount: S_churn, spread over the steps; 0: none.
      low: S_min, the least σ at which there is any.
      high: S_max, the most; 0: no bound.
      noise: S_noise, the deviation of what is added.
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
    """Images to begin with.

    Attributes:
      image: (N, *shape), clean.
      strength: how far back to noise they go, 0…1 of the steps (SDEdit, Meng et al. 2022); with 0
        they stay what they are, with 1 nothing of what is drawn anew is kept.
      redrawn: (N, H, W), True where to draw anew; none: everywhere. Elsewhere the denoised image is
        taken to be the given one, so that it is walked along with just the noise of each level.
      resample: how often each step is taken, going back to its noise in between, so that what is
        drawn and what is kept grow together (RePaint, Lugmayr et al. 2022); 1: once.
    """

    image: jax.Array
    strength: Number = 1.0
    redrawn: jax.Array | None = None
    resample: jax.Array | int = 1

    def keep(self, x: jax.Array, kept: jax.Array) -> jax.Array:
        """x where it is drawn anew, and `kept` elsewhere."""
        return x if self.redrawn is None else jnp.where(self.redrawn[..., None], x, kept)


def sample(
    denoiser: Denoiser,
    grid: SigmaSchedule,
    key_N: jax.Array,
    shape: tuple[int, ...],
    steps: Number,
    *,
    sampler: str = "heun",
    eta: Number = 0.0,
    churn: Churn | None = None,
    given: InitImage | None = None,
    jump: FlowMap | None = None,
) -> jax.Array:
    """Images (N, *shape), walked down the grid of σ from noise.

    Args:
      denoiser: D(x; σ).
      grid: σ_i of a walk; σ_0 is where it starts.
      key_N: one random key per image.
      shape: of one image.
      steps: scalar, how many steps; a change of it does not recompile.
      sampler: "heun" (EDM, algorithm 2; two evaluations per step but the last), "euler", "ddim"
        (Song et al. 2021, with its η), "ancestral" (Ho et al. 2020: DDIM with η = 1), "dpmpp_2m"
        (Lu et al. 2022, DPM-Solver++, algorithm 2: second order with one evaluation per step).
      eta: DDIM's share of fresh noise.
      churn: heun, euler: noise on the walk.
      given: images to begin with; none: from pure noise.
      jump: takes the steps instead of the sampler (MeanFlow).
    """
    churn = churn or Churn()
    eta = {"ancestral": 1.0, "ddim": eta}.get(sampler, 0.0)
    steps = jnp.asarray(steps, jnp.int32)
    first, repeats = jnp.int32(0), jnp.int32(1)
    noise = normal(fold(key_N, 0), shape)
    if given is None:
        x = grid(first, steps) * noise
    else:
        first = steps - jnp.round(steps * jnp.asarray(given.strength)).astype(jnp.int32)
        repeats = jnp.asarray(given.resample, jnp.int32)
        noisy = given.image + grid(first, steps) * noise
        x = jnp.where(jnp.asarray(given.strength) >= 1, grid(first, steps) * noise, noisy)
        x = given.keep(x, noisy)

    def denoised_at(x, sigma):
        return given.keep(denoiser(x, sigma), given.image) if given else denoiser(x, sigma)

    def body(k, carry):
        x, before = carry
        i, time = k // repeats, k % repeats
        sigma, following = grid(i, steps), grid(i + 1, steps)
        noise, denoised = normal(fold(key_N, k + 1), shape), before
        if jump is not None:
            x = jump(x, sigma, following)
            x = given.keep(x, given.image + following * noise) if given else x
        elif sampler == "dpmpp_2m":
            # After going back, what was denoised before belongs to another walk.
            earlier = jnp.where((i > first) & (time == 0), grid(i - 1, steps), sigma)
            denoised = denoised_at(x, sigma)
            x = dpm_step(denoised, before, x, earlier, sigma, following)
        elif sampler == "heun":
            x, raised = churn.add(x, sigma, noise, steps)
            x = heun_step(denoised_at, x, raised, following)
        else:
            raised = sigma
            if sampler == "euler":
                x, raised = churn.add(x, sigma, noise, steps)
            x = ddim_step(denoised_at(x, raised), x, noise, raised, following, eta)
        if given is not None:
            fresh = normal(fold(fold(key_N, RESAMPLE), k), shape)
            back = jnp.sqrt(jnp.maximum(sigma**2 - following**2, 0))
            x = jnp.where(time == repeats - 1, x, x + back * fresh)
        return x, denoised

    x, _ = jax.lax.fori_loop(first * repeats, steps * repeats, body, (x, jnp.zeros_like(x)))
    return given.keep(x, given.image) if given else x


def heun_step(
    denoiser: Denoiser, x: jax.Array, sigma: jax.Array, following: jax.Array
) -> jax.Array:
    """The trapezoidal rule for dx/dσ = (x − D(x; σ)) / σ; Euler's where it ends at σ = 0."""
    slope = (x - denoiser(x, sigma)) / sigma
    euler = x + (following - sigma) * slope

    def correct():
        safe = jnp.maximum(following, 1e-20)
        return x + (following - sigma) * (slope + (euler - denoiser(euler, safe)) / safe) / 2

    return jax.lax.cond(following > 0, correct, lambda: euler)


def ddim_step(
    denoised: jax.Array,
    x: jax.Array,
    noise: jax.Array,
    sigma: jax.Array,
    following: jax.Array,
    eta: Number,
) -> jax.Array:
    """DDIM, eq. 12: with η = 1 the posterior q(x_s | x_t, y) of DDPM, with η = 0 Euler's step."""
    ratio = (following / sigma) ** 2
    up = eta * jnp.sqrt(ratio * jnp.maximum(sigma**2 - following**2, 0))
    down = jnp.sqrt(jnp.maximum(following**2 - up**2, 0))
    return denoised + down / sigma * (x - denoised) + up * noise


def dpm_step(
    denoised: jax.Array,
    before: jax.Array,
    x: jax.Array,
    earlier: jax.Array,
    sigma: jax.Array,
    following: jax.Array,
) -> jax.Array:
    """DPM-Solver++(2M): D is taken to be linear in ln σ over this step, as over the last one.

    Args:
      denoised: D at `sigma`.
      before: D at `earlier`, the σ of the step before; without such a step `earlier` is `sigma`.
      x: at `sigma`.
      earlier: σ one step ago.
      sigma: σ now.
      following: σ after the step; where it is 0, and in the first step, D is taken as constant.
    """
    length = jnp.log(sigma / jnp.maximum(following, 1e-20))
    length_before = jnp.log(earlier / sigma)
    linear = (length_before > 0) & (following > 0)
    ratio = jnp.where(linear, length / jnp.where(linear, length_before, 1), 0)
    extrapolated = denoised + ratio / 2 * (denoised - before)
    return extrapolated + following / sigma * (x - extrapolated)
