"""Diffusion samplers: from noise to images, given a denoiser. The number of steps is traced.

In the coordinates x = y + σ n (Karras et al. 2022) DDIM is Euler's method for the probability-flow
ODE, and DDIM with η = 1 is ancestral DDPM sampling; one step function serves them all.
Shapes: N images; σ a scalar.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.ops.random import fold, normal

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # (x_NHWC, σ) → D(x; σ)
Grid = Callable[[jax.Array, jax.Array], jax.Array]  # (i, steps) → σ_i, falling to 0

SAMPLERS = ("heun", "euler", "ddim", "ancestral")


def sample(
    denoiser: Denoiser,
    grid: Grid,
    key_N: jax.Array,
    shape: tuple[int, ...],
    steps: jax.Array,
    *,
    sampler: str = "heun",
    eta: jax.Array | float = 0.0,
    churn: jax.Array | float = 0.0,
) -> jax.Array:
    """Images (N, *shape), walked down the grid of σ from pure noise.

    Args:
      denoiser: D(x; σ).
      grid: σ_i of a walk; σ_0 is where it starts.
      key_N: one random key per image.
      shape: of one image.
      steps: scalar, how many steps; a change of it does not recompile.
      sampler: "heun" (EDM, algorithm 2; two evaluations per step but the last), "euler", "ddim"
        (Song et al. 2021, with its η), "ancestral" (Ho et al. 2020: DDIM with η = 1).
      eta: DDIM's share of fresh noise.
      churn: Heun's S_churn, spread over the steps.
    """
    eta = {"heun": 0.0, "euler": 0.0, "ancestral": 1.0}.get(sampler, eta)
    steps = jnp.asarray(steps, jnp.int32)

    def body(i, x):
        sigma, following = grid(i, steps), grid(i + 1, steps)
        noise = normal(fold(key_N, i + 1), shape)
        if sampler == "heun":
            gamma = jnp.minimum(churn / steps, jnp.sqrt(2.0) - 1)
            # √((1 + γ)² − 1) in a form that rounding cannot make negative
            x = x + sigma * jnp.sqrt(gamma * (2 + gamma)) * noise
            return heun_step(denoiser, x, sigma * (1 + gamma), following)
        return ddim_step(denoiser(x, sigma), x, noise, sigma, following, eta)

    start = grid(jnp.int32(0), steps) * normal(fold(key_N, 0), shape)
    return jax.lax.fori_loop(0, steps, body, start)


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
    eta: jax.Array | float,
) -> jax.Array:
    """DDIM, eq. 12: with η = 1 the posterior q(x_s | x_t, y) of DDPM, with η = 0 Euler's step."""
    ratio = (following / sigma) ** 2
    up = eta * jnp.sqrt(ratio * jnp.maximum(sigma**2 - following**2, 0))
    down = jnp.sqrt(jnp.maximum(following**2 - up**2, 0))
    return denoised + down / sigma * (x - denoised) + up * noise
