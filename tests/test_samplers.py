"""Diffusion samplers on a Gaussian, where the exact answer is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.objectives.noise import DDPM, EDM, FlowMatching
from aigc_jax.sampling.diffusion import sample

MEAN, STD = 0.3, 0.5
KEYS = jax.random.split(jax.random.key(0), 4000)


def denoiser(x, sigma):
    """The exact D(x; σ) of N(MEAN, STD²)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def exact(noise):
    """Where the probability-flow ODE takes each start: x − MEAN shrinks by STD / √(STD² + σ²)."""
    sigma = noise.grid(jnp.int32(0), jnp.int32(1000))
    start = sigma * jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (1, 1, 1)))(KEYS)
    return MEAN + (start - MEAN) * STD / jnp.sqrt(STD**2 + sigma**2)


@partial(jax.jit, static_argnames=("noise", "sampler"))
def draw(noise, steps, **kwargs):
    return sample(denoiser, noise.grid, KEYS, (1, 1, 1), steps, **kwargs)


NOISES = [EDM(), FlowMatching(), DDPM()]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_heun_and_euler_converge_at_their_order(noise):
    """Doubling the steps divides Euler's error by 2 and Heun's by 4."""
    goal = exact(noise)
    for sampler, order in (("euler", 1), ("heun", 2)):
        errors = [
            float(jnp.abs(draw(noise, steps, sampler=sampler) - goal).mean())
            for steps in (64, 128, 256)
        ]
        rates = np.log2(np.array(errors[:-1]) / errors[1:])
        # The last step, to σ = 0, is Euler's whatever the sampler: it dilutes the order a little.
        assert (rates > order - 0.35).all() or errors[-1] < 1e-4, (sampler, errors)
        assert errors[-1] < 2e-2


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("kwargs", [
    dict(sampler="heun"), dict(sampler="heun", churn=20.0), dict(sampler="euler"),
    dict(sampler="ddim"), dict(sampler="ddim", eta=0.5), dict(sampler="ancestral"),
], ids=str)  # fmt: skip
def test_samples_have_the_right_mean_and_deviation(noise, kwargs):
    x = np.asarray(draw(noise, 200, **kwargs))
    # 4,000 samples: standard errors of 0.008 and 0.006, and the discretisation of 200 steps.
    assert abs(x.mean() - MEAN) < 0.03
    assert abs(x.std() - STD) < 0.03


def test_ddim_is_euler_and_ancestral_is_ddim_with_eta_one():
    for kwargs in (dict(sampler="euler"), dict(sampler="ancestral")):
        eta = float(kwargs["sampler"] == "ancestral")
        np.testing.assert_array_equal(
            draw(EDM(), 10, **kwargs), draw(EDM(), 10, sampler="ddim", eta=eta)
        )
    assert not np.allclose(draw(EDM(), 10, sampler="ancestral"), draw(EDM(), 10, sampler="ddim"))


def test_ancestral_step_is_the_posterior():
    """One step from σ=2 to σ=1 has the mean and variance of q(x_s | x_t, y)."""
    grid = lambda i, steps: jnp.array([2.0, 1.0])[i]  # noqa: E731
    x = sample(lambda x, s: jnp.full_like(x, 0.7), grid, KEYS, (1, 1, 1), 1, sampler="ancestral")
    start = 2 * jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (1, 1, 1)))(KEYS)
    mean = 0.7 + (1 / 4) * (start - 0.7)
    np.testing.assert_allclose(np.std(x - mean), np.sqrt(1 * (4 - 1) / 4), rtol=0.04)
    np.testing.assert_allclose(np.mean(x - mean), 0, atol=0.05)


def test_the_number_of_steps_is_traced():
    draw.clear_cache()
    for steps in (1, 5, 18):
        assert np.isfinite(draw(EDM(), steps, sampler="heun")).all()
    assert draw._cache_size() == 1
