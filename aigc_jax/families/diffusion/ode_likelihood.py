"""The exact log-likelihood of a diffusion model, by its probability-flow ODE.

Shapes: N examples of any rank, d the number of values of one.
"""

import jax
import jax.numpy as jnp

from aigc_jax.families.diffusion.sampler_steps import Denoiser
from aigc_jax.ops.per_example import sum_per_example


def log_likelihood(
    denoiser: Denoiser,
    x_N: jax.Array,
    probe_N: jax.Array,
    sigma_min: float,
    sigma_max: float,
    steps: int,
    scale: float = 0.5,
) -> jax.Array:
    """log p(x) in nats, (N,), of the density that the ODE makes of noise.

    The ODE dx/dσ = (x − D(x; σ)) / σ carries x from σ_min to σ_max, where it is taken to be normal
    with deviation σ_max, and log p changes by the divergence along the way (Song et al. 2021,
    section 4.3). The divergence is estimated by one probe per example (Hutchinson; Grathwohl et al.
    2019), the same one all the way: εᵀ (∂D/∂x) ε, whose mean is the trace. It is exact where D acts
    on each value separately.

    Args:
      denoiser: D(x; σ); σ is a scalar.
      x_N: examples (N, …).
      probe_N: ε, random signs of the same shape.
      sigma_min: noise level of the examples.
      sigma_max: noise level at which they are taken to be normal.
      steps: of the classical fourth-order Runge-Kutta method, equal in ln σ; each evaluates the
        denoiser and its derivative four times.
      scale: standard deviation of the data; the ODE is solved for z = x / √(σ² + scale²), which
        hardly changes. Only the error of the solution depends on it.
    """
    d = x_N[0].size
    low, high = jnp.log(sigma_min), jnp.log(sigma_max)
    h = (high - low) / steps

    def size(log_sigma):
        return jnp.sqrt(jnp.exp(2 * log_sigma) + scale**2)

    def slopes(log_sigma, z):
        """dz / d ln σ, and its divergence."""
        c = size(log_sigma)
        share = jnp.exp(2 * log_sigma) / c**2  # d ln c / d ln σ
        denoised, pull = jax.vjp(lambda x: denoiser(x, jnp.exp(log_sigma)), c * z)
        trace_N = sum_per_example(pull(probe_N)[0] * probe_N)
        return z - denoised / c - share * z, d - trace_N - d * share

    def body(i, carry):
        z, change_N = carry
        at = low + i * h
        a, div_a = slopes(at, z)
        b, div_b = slopes(at + h / 2, z + h / 2 * a)
        c, div_c = slopes(at + h / 2, z + h / 2 * b)
        e, div_e = slopes(at + h, z + h * c)
        change_N += h / 6 * (div_a + 2 * div_b + 2 * div_c + div_e)
        return z + h / 6 * (a + 2 * b + 2 * c + e), change_N

    start = x_N / size(low), jnp.zeros(x_N.shape[0])
    z, change_N = jax.lax.fori_loop(0, steps, body, start)
    # log p is that of x; z's differs by d ln c at each end.
    noise = z * size(high) / sigma_max
    prior_N = -sum_per_example(noise**2) / 2 - d * (jnp.log(2 * jnp.pi) / 2 + high)
    return prior_N + change_N + d * (jnp.log(size(high)) - jnp.log(size(low)))
