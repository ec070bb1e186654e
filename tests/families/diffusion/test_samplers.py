"""Diffusion samplers on a Gaussian, where the exact answer is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.families.diffusion.noise_schedules import Flow, Karras, Timesteps
from aigc_jax.families.diffusion.ode_likelihood import log_likelihood
from aigc_jax.families.diffusion.sampler_steps import Churn, InitImage
from aigc_jax.families.diffusion.samplers import sample
from aigc_jax.families.diffusion.sigma_schedules import make_sigmas

MEAN, STD = 0.3, 0.5
KEYS = jax.random.split(jax.random.key(0), 4000)


def denoiser(x, sigma):
    """The exact D(x; σ) of N(MEAN, STD²)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def start_of(keys=KEYS, shape=(1, 1, 1)):
    return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), shape))(keys)


def exact(schedule):
    """Where the probability-flow ODE takes each start: x − MEAN shrinks by STD / √(STD² + σ²)."""
    sigma = make_sigmas("auto", schedule)(jnp.int32(0), jnp.int32(1000))
    return MEAN + (sigma * start_of() - MEAN) * STD / jnp.sqrt(STD**2 + sigma**2)


@partial(jax.jit, static_argnames=("schedule", "sampler", "sigma_schedule"))
def draw(schedule, steps, sigma_schedule="auto", churn=None, **kwargs):
    sigmas = make_sigmas(sigma_schedule, schedule)
    churn = None if churn is None else Churn(*churn)
    return sample(denoiser, sigmas, KEYS, (1, 1, 1), steps, churn=churn, **kwargs)


SCHEDULES = [Karras(), Flow(), Timesteps("cosine")]
ORDERS = (("euler", 1), ("heun", 2), ("dpmpp_2m", 2))


@pytest.mark.parametrize(
    "schedule",
    [SCHEDULES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SCHEDULES[1:])],
    ids=lambda n: type(n).__name__,
)
def test_samplers_converge_at_their_order(schedule):
    """Doubling the steps divides Euler's error by 2, Heun's and DPM-Solver++(2M)'s by 4."""
    goal = exact(schedule)
    for sampler, order in ORDERS:
        errors = [
            float(jnp.abs(draw(schedule, steps, sampler=sampler) - goal).mean())
            for steps in (64, 128, 256)
        ]
        rates = np.log2(np.array(errors[:-1]) / errors[1:])
        # The last step, to σ = 0, is Euler's whatever the sampler: it dilutes the order a little.
        assert (rates > order - 0.35).all() or errors[-1] < 1e-4, (sampler, errors)
        assert errors[-1] < 2e-2


def test_dpm_solver_is_of_second_order_between_two_noise_levels():
    """From σ = 20 to 0.02 and no further, so that no step of first order blurs it."""
    ends = jnp.log(20.0), jnp.log(0.02)
    goal = MEAN + (20 * start_of() - MEAN) * jnp.sqrt((STD**2 + 0.02**2) / (STD**2 + 20.0**2))
    errors = []
    for steps in (32, 64, 128):
        sigmas = lambda i, n: jnp.exp(ends[0] + i / n * (ends[1] - ends[0]))  # noqa: E731
        x = sample(denoiser, sigmas, KEYS, (1, 1, 1), steps, sampler="dpmpp_2m")
        errors.append(float(jnp.abs(x - goal).mean()))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(rates - 2) < 0.2).all(), errors


@pytest.mark.parametrize("kwargs", [
    dict(sampler="heun"), dict(sampler="heun", churn=(20.0, 0.05, 50.0, 1.0)),
    dict(sampler="euler"), dict(sampler="ddim"), dict(sampler="ddim", eta=0.5),
    dict(sampler="ancestral"),
    dict(sampler="euler", churn=(20.0, 0.0, 0.0, 1.0)), dict(sampler="dpmpp_2m"),
    dict(sampler="ancestral", schedule=Timesteps()), dict(sampler="ancestral", schedule=Flow()),
], ids=str)  # fmt: skip
def test_samples_have_the_right_mean_and_deviation(kwargs):
    x = np.asarray(draw(steps=200, **{"schedule": Karras(), **kwargs}))
    # 4,000 samples: standard errors of 0.008 and 0.006, and the discretisation of 200 steps.
    assert abs(x.mean() - MEAN) < 0.03
    assert abs(x.std() - STD) < 0.03


def test_ddim_is_euler_and_ancestral_is_ddim_with_eta_one():
    for kwargs in (dict(sampler="euler"), dict(sampler="ancestral")):
        eta = float(kwargs["sampler"] == "ancestral")
        ddim = draw(Karras(), 10, sampler="ddim", eta=eta)
        # To rounding: Euler adds a churn of nothing.
        np.testing.assert_allclose(draw(Karras(), 10, **kwargs), ddim, rtol=1e-4, atol=1e-5)
    assert not np.allclose(
        draw(Karras(), 10, sampler="ancestral"), draw(Karras(), 10, sampler="ddim")
    )


def test_ancestral_step_is_the_posterior():
    """One step from σ=2 to σ=1 has the mean and variance of q(x_s | x_t, y)."""
    sigmas = lambda i, steps: jnp.array([2.0, 1.0])[i]  # noqa: E731
    x = sample(lambda x, s: jnp.full_like(x, 0.7), sigmas, KEYS, (1, 1, 1), 1, sampler="ancestral")
    start = 2 * start_of()
    mean = 0.7 + (1 / 4) * (start - 0.7)
    np.testing.assert_allclose(np.std(x - mean), np.sqrt(1 * (4 - 1) / 4), rtol=0.04)
    np.testing.assert_allclose(np.mean(x - mean), 0, atol=0.05)


def test_the_number_of_steps_is_traced():
    draw.clear_cache()
    for steps in (1, 5, 18):
        assert np.isfinite(draw(Karras(), steps, sampler="heun")).all()
    assert draw._cache_size() == 1


def test_churn_stays_within_its_interval():
    def churned(*churn):
        return np.asarray(draw(Karras(), 10, sampler="heun", churn=churn))

    plain = churned(0.0, 0.0, 0.0, 1.0)
    for off in ((20.0, 100.0, 0.0, 1.0), (20.0, 0.0, 0.001, 1.0)):
        np.testing.assert_array_equal(churned(*off), plain)
    assert (churned(20.0, 0.0, 0.0, 1.0) != plain).any()
    # Without its noise the walk only goes up and down: it ends elsewhere, but surely.
    assert (churned(20.0, 0.0, 0.0, 1.0) != churned(20.0, 0.0, 0.0, 0.0)).any()


# Images to begin with ------------------------------------------------------------------------

FEW = KEYS[:64]
IMAGE = jax.random.normal(jax.random.key(5), (64, 4, 4, 1)) * STD + MEAN
LEFT = jnp.zeros((64, 4, 4), bool).at[:, :, :2].set(True)


@partial(jax.jit, static_argnames=("sampler",))
def redraw(sampler, strength=1.0, inpaint_mask=None, resample=1, steps=12, **kwargs):
    init_image = InitImage(IMAGE, strength, inpaint_mask, resample)
    sigmas = make_sigmas("auto", Karras())
    return sample(
        denoiser, sigmas, FEW, (4, 4, 1), steps, sampler=sampler, init_image=init_image, **kwargs
    )


@pytest.mark.parametrize("sampler", ["heun", "ancestral", "dpmpp_2m"])
def test_inpainting_keeps_what_is_known_and_draws_the_rest(sampler):
    for resample in (1, 4):
        x = redraw(sampler, inpaint_mask=LEFT, resample=resample, steps=60)
        np.testing.assert_array_equal(x[:, :, 2:], IMAGE[:, :, 2:])
        assert (x[:, :, :2] != IMAGE[:, :, :2]).all()
        # 512 values: standard errors of 0.02 and 0.016, and few steps.
        drawn = np.asarray(x[:, :, :2])
        assert abs(drawn.mean() - MEAN) < 0.12 and abs(drawn.std() - STD) < 0.12
    nothing = redraw(sampler, inpaint_mask=jnp.zeros_like(LEFT))
    np.testing.assert_array_equal(nothing, IMAGE)


def test_what_is_known_is_seen_with_the_noise_of_each_level():
    """The known half of every x that the denoiser is asked about is y + σ n."""
    seen = []

    def asked(x, sigma):
        jax.debug.callback(lambda *state: seen.append(state), x, sigma, ordered=True)
        return denoiser(x, sigma)

    @jax.jit
    def walk():
        init_image = InitImage(IMAGE, 1.0, LEFT, 2)
        sigmas = make_sigmas("auto", Karras())
        return sample(asked, sigmas, FEW, (4, 4, 1), 3, sampler="ancestral", init_image=init_image)

    walk().block_until_ready()
    jax.effects_barrier()
    assert len(seen) == 6
    for x, sigma in seen:
        n = (x - IMAGE)[:, :, 2:] / sigma
        # 512 values; at σ = 0.002 rounding is 1e-4 of it.
        assert abs(float(n.mean())) < 0.2 and abs(float(n.std()) - 1) < 0.12


@pytest.mark.parametrize("sampler", ["heun", "ancestral", "dpmpp_2m"])
def test_strength_says_how_much_of_an_image_is_kept(sampler):
    np.testing.assert_array_equal(redraw(sampler, strength=0.0), IMAGE)
    whole = sample(denoiser, make_sigmas("auto", Karras()), FEW, (4, 4, 1), 12, sampler=sampler)
    # All of it: a sample like any other. (The compiler rounds another way.)
    np.testing.assert_allclose(redraw(sampler, strength=1.0), whole, rtol=1e-3, atol=1e-4)
    moved = [float(jnp.abs(redraw(sampler, strength=s) - IMAGE).mean()) for s in (0.25, 0.5, 0.9)]
    assert 0 < moved[0] < moved[1] < moved[2]


# Likelihood ----------------------------------------------------------------------------------


def probes(shape, seed=7):
    return jax.random.rademacher(jax.random.key(seed), shape, jnp.float32)


def test_the_likelihood_of_a_gaussian_is_exact():
    """Of independent values with means and deviations of their own: no luck in the probe."""
    mean = jnp.array([0.3, -0.5, 0.0, 0.1]).reshape(2, 2, 1)
    std = jnp.array([0.5, 0.1, 1.0, 0.3]).reshape(2, 2, 1)

    def denoiser(x, sigma):
        return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)

    low, high = 0.01, 1000.0
    x = mean + std * jax.random.normal(jax.random.key(0), (50, 2, 2, 1))
    found = log_likelihood(denoiser, x, probes(x.shape), low, high, 128)
    variance = std**2 + low**2  # at σ_min the density is blurred by so much
    log_p = -((x - mean) ** 2) / (2 * variance) - jnp.log(2 * jnp.pi * variance) / 2
    # At σ_max the noise is taken to be centred: an error of about |mean| / σ_max each.
    np.testing.assert_allclose(found, log_p.sum((1, 2, 3)), atol=3e-3)


def test_the_likelihood_converges_with_the_steps():
    x = 0.1 + 0.2 * jax.random.normal(jax.random.key(0), (20, 2, 2, 1))
    exact = (-((x - MEAN) ** 2) / 2 / STD**2 - jnp.log(2 * jnp.pi * STD**2) / 2).sum((1, 2, 3))
    errors = []
    for steps in (4, 8, 16):
        found = log_likelihood(denoiser, x, probes(x.shape), 1e-3, 1e3, steps, scale=0.1)
        errors.append(float(jnp.abs(found - exact).mean()))
    assert errors[0] > 8 * errors[1] > 64 * errors[2], errors


def test_the_probes_are_right_on_average():
    """Values that depend on each other: the mean over all signs is the exact log density."""
    covariance = jnp.array([[0.3, 0.2], [0.2, 0.4]])

    def denoiser(x, sigma):
        gain = covariance @ jnp.linalg.inv(covariance + sigma**2 * jnp.eye(2))
        return (x.reshape(-1, 2) @ gain.T).reshape(x.shape)

    x = jnp.array([0.4, -0.7]).reshape(1, 1, 2, 1)
    found = [
        float(log_likelihood(denoiser, x, jnp.array(s).reshape(x.shape), 1e-3, 1e3, 96)[0])
        for s in ([1.0, 1.0], [1.0, -1.0])
    ]
    row = x.reshape(2)
    log_p = -row @ jnp.linalg.solve(covariance, row) / 2
    log_p -= jnp.log(jnp.linalg.det(2 * jnp.pi * covariance)) / 2
    assert abs(found[0] - found[1]) > 0.1
    np.testing.assert_allclose(np.mean(found), log_p, atol=3e-3)
