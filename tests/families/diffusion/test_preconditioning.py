"""What a network predicts, the noise it sees, and what errors weigh: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.families.diffusion.diffusion_config import DiffusionConfig
from aigc_jax.families.diffusion.noise_distributions import LogNormal, Uniform
from aigc_jax.families.diffusion.noise_schedules import Flow, Karras, Timesteps
from aigc_jax.families.diffusion.preconditioning import (
    PREDICTIONS,
    Preconditioning,
    make_preconditioning,
)
from aigc_jax.families.diffusion.sigma_schedules import (
    SIGMA_SCHEDULES,
    check_sigma_schedule,
    make_sigmas,
)

SCHEDULES = [Karras(), Flow(), Timesteps("linear"), Timesteps("cosine")]


def preconditioning_of(prediction, **changes):
    return make_preconditioning(DiffusionConfig(prediction=prediction, **changes))


def vp(sigma):
    """√ᾱ and √(1 − ᾱ)."""
    return 1 / jnp.sqrt(1 + sigma**2), sigma / jnp.sqrt(1 + sigma**2)


IDEAL = {
    # What an ideal network answers for x = y + σ n, by each prediction.
    "epsilon": lambda y, n, sigma: n,
    "v": lambda y, n, sigma: vp(sigma)[0] * n - vp(sigma)[1] * y,
    "x": lambda y, n, sigma: y,
    "flow": lambda y, n, sigma: n - y,
    "edm": lambda y, n, sigma: (
        (y - 0.25 / (sigma**2 + 0.25) * (y + sigma * n)) / (0.5 * sigma / jnp.sqrt(sigma**2 + 0.25))
    ),
}
# What each network sees of x = y + σ n.
SEEN = {
    "epsilon": lambda y, n, sigma: vp(sigma)[0] * y + vp(sigma)[1] * n,
    "v": lambda y, n, sigma: vp(sigma)[0] * y + vp(sigma)[1] * n,
    "x": lambda y, n, sigma: vp(sigma)[0] * y + vp(sigma)[1] * n,
    "flow": lambda y, n, sigma: (y + sigma * n) / (1 + sigma),
    "edm": lambda y, n, sigma: (y + sigma * n) / jnp.sqrt(sigma**2 + 0.25),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_ideal_network_denoises_exactly(prediction):
    noise, seen = preconditioning_of(prediction), {}
    sigma_B = noise.sigma_quantile(jnp.linspace(0.001, 0.999, 64))
    sigma = sigma_B[:, None, None, None]
    y, n = jax.random.normal(jax.random.key(1), (2, 64, 4, 4, 1))
    y = 0.5 * y

    def network(x, time_B):
        seen.update(x=x)
        return IDEAL[prediction](y, n, sigma)

    denoised = noise.denoise(network, y + sigma * n, sigma_B)
    np.testing.assert_allclose(seen["x"], SEEN[prediction](y, n, sigma), rtol=1e-4, atol=1e-5)
    # In units of the weighted loss, so that every σ counts alike.
    error = noise.weight(sigma) * (denoised - y) ** 2
    assert float(error.max()) < 1e-4


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_uniform_loss_is_the_error_of_what_the_network_answers(prediction):
    noise = preconditioning_of(prediction)
    sigma_B = noise.sigma_quantile(jnp.linspace(0.1, 0.9, 8))
    sigma = sigma_B[:, None, None, None]
    y, n, wrong = jax.random.normal(jax.random.key(1), (3, 8, 2, 2, 1))
    ideal = IDEAL[prediction](y, n, sigma)
    denoised = noise.denoise(lambda x, t: ideal + wrong, y + sigma * n, sigma_B)
    loss = noise.weight(sigma) * (denoised - y) ** 2
    np.testing.assert_allclose(loss, wrong**2, rtol=1e-2, atol=1e-3)


# min(SNR, γ) / what an error of D is in units of the network's answer (Hang et al. 2023, 3.4).
MIN_SNR = {
    "x": lambda snr: jnp.minimum(snr, 5.0),
    "epsilon": lambda snr: jnp.minimum(snr, 5.0) / snr,
    "v": lambda snr: jnp.minimum(snr, 5.0) / (snr + 1),
}


@pytest.mark.parametrize("prediction", MIN_SNR)
def test_min_snr_has_the_published_weight_of_each_prediction(prediction):
    noise = preconditioning_of(prediction, weighting="min_snr")
    sigma = jnp.array([0.05, 0.3, 1.0, 4.0])[:, None, None, None]
    plain = preconditioning_of(prediction).weight(sigma)
    np.testing.assert_allclose(
        noise.weight(sigma) / plain, MIN_SNR[prediction](1 / sigma**2), rtol=1e-5
    )


def test_predictions_of_the_same_image_have_the_same_loss():
    """ε, v and x under one weighting: what the network answers is only a matter of writing."""
    sigma_B = jnp.array([0.05, 0.3, 1.0, 4.0])
    sigma = sigma_B[:, None, None, None]
    y, n, guess = jax.random.normal(jax.random.key(2), (3, 4, 2, 2, 1))
    losses = []
    for prediction in ("epsilon", "v", "x", "flow", "edm"):
        noise = preconditioning_of(prediction, weighting="min_snr")
        # The network answers as if the image were `guess`, and the noise all the rest.
        rest = (y + sigma * n - guess) / sigma
        answer = IDEAL[prediction](guess, rest, sigma)
        denoised = noise.denoise(lambda x, t: answer, y + sigma * n, sigma_B)
        losses.append(noise.weight(sigma) * (denoised - y) ** 2)
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=1e-3, atol=1e-4)


def test_edm_weights_by_hand():
    sigma = jnp.array([0.1, 2.0])
    edm = preconditioning_of("v", weighting="edm", sigma_data=0.7)
    by_hand = (sigma**2 + 0.49) / (sigma * 0.7) ** 2
    np.testing.assert_allclose(edm.weight(sigma), by_hand, rtol=1e-6)
    np.testing.assert_allclose(
        preconditioning_of("edm", sigma_data=0.7).weight(sigma), by_hand, rtol=1e-5
    )


def test_edm_inputs_and_targets_have_unit_variance():
    """For data of variance σ_data² at every σ (Karras et al. 2022, section 5)."""
    noise, seen = preconditioning_of("edm", sigma_data=0.7), {}
    y, n = jax.random.normal(jax.random.key(1), (2, 20000, 1, 1, 1))
    y = 0.7 * y
    for value in (0.01, 0.5, 3.0, 70.0):
        sigma = jnp.full(20000, value)
        zero = noise.denoise(lambda x, t: seen.update(x=x) or 0 * x, y + value * n, sigma)
        target = jnp.sqrt(noise.weight(value)) * (y - zero)  # what F must answer
        assert abs(float(seen["x"].std()) - 1) < 0.02 and abs(float(target.std()) - 1) < 0.02


def test_levels_have_their_distributions():
    u = (jnp.arange(20000) + 0.5) / 20000
    edm = jnp.log(Preconditioning("edm", Karras(), LogNormal(-1.2, 1.2)).sigma_quantile(u))
    np.testing.assert_allclose([edm.mean(), edm.std()], [-1.2, 1.2], atol=2e-3)
    # Logit-normal t: its logit is ln σ.
    flow = Preconditioning("flow", Flow(), LogNormal(0.5, 0.8)).sigma_quantile(u)
    t = flow / (1 + flow)
    logit = jnp.log(t / (1 - t))
    np.testing.assert_allclose([logit.mean(), logit.std()], [0.5, 0.8], atol=2e-3)
    # Uniform: each timestep equally often; t evenly; ln σ evenly.
    for betas in ("linear", "cosine"):
        steps = Preconditioning("epsilon", Timesteps(betas), Uniform()).sigma_quantile(u)
        index = np.round(Timesteps(betas).time(steps))
        assert (np.bincount(index.astype(int), minlength=1000) == 20).all()
    sigma = Preconditioning("flow", Flow(), Uniform()).sigma_quantile(u)
    np.testing.assert_allclose(sigma / (1 + sigma), 0.001 + 0.998 * u, rtol=1e-3)
    sigma = Preconditioning("edm", Karras(), Uniform()).sigma_quantile(u)
    np.testing.assert_allclose(jnp.log(sigma / 0.002) / jnp.log(40000.0), u, atol=1e-4)


def test_draws_rise_with_the_number_that_they_are_made_of():
    for prediction in PREDICTIONS:
        sigma = preconditioning_of(prediction).sigma_quantile(
            jnp.linspace(0, 1, 200, endpoint=False)
        )
        assert np.isfinite(sigma).all() and (np.diff(sigma) >= 0).all() and sigma[0] > 0


def test_schedules_by_hand():
    """DDPM's ᾱ is the product of 1 − β from 10⁻⁴ to 0.02; the network is told 0…999."""
    linear = Timesteps("linear")
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    np.testing.assert_allclose(1 / (1 + np.exp(2 * linear.log_sigmas)), alpha_bar, rtol=1e-9)
    cosine = Timesteps("cosine")
    halfway = (
        np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    np.testing.assert_allclose(1 / (1 + np.exp(2 * cosine.log_sigmas[499])), halfway, rtol=1e-6)
    for schedule in (linear, cosine):
        index = jnp.array([0.0, 499.0, 999.0])
        np.testing.assert_allclose(
            schedule.time(schedule.sigma_of_timestep(index)), index, atol=0.02
        )
    np.testing.assert_allclose(Flow().time(jnp.array([1.0, 3.0])), [500, 750], rtol=1e-6)
    np.testing.assert_allclose(Karras().time(jnp.array([1.0, np.e])), [0, 250], atol=1e-3)
    for schedule in SCHEDULES:
        ends = [schedule.sigma_at(jnp.float32(s)) for s in (0, 1)]
        np.testing.assert_allclose(ends, [schedule.sigma_min, schedule.sigma_max], rtol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_grids_fall_from_noise_to_zero(schedule):
    for name in SIGMA_SCHEDULES:
        grid = make_sigmas(name, schedule)
        for steps in (1, 2, 7, 50):
            sigma = np.asarray(grid(jnp.arange(steps + 1), jnp.int32(steps)))
            assert sigma[-1] == 0 and np.isfinite(sigma).all(), (name, steps)
            assert (np.diff(sigma) < 0).all(), (name, steps, sigma)
            assert sigma[0] <= schedule.sigma_max * 1.01
            assert name == "leading" or sigma[0] > 20


def test_grids_by_hand():
    def values(name, schedule, steps, **kwargs):
        return np.asarray(make_sigmas(name, schedule, **kwargs)(jnp.arange(steps + 1), steps))

    root = np.array([80 ** (1 / 7), (80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2, 0.002 ** (1 / 7)])
    np.testing.assert_allclose(values("karras", Karras(), 3)[:3], root**7, rtol=1e-4)
    linear = Timesteps("linear")
    for name, index in (("trailing", [999, 749, 499, 249]), ("leading", [750, 500, 250, 0])):
        sigma = np.exp(linear.log_sigmas[index])
        np.testing.assert_allclose(values(name, linear, 4)[:4], sigma, rtol=1e-4)
    plain, shifted = values("flow", Flow(), 5), values("flow", Flow(), 5, shift=3.0)
    t = plain / (1 + plain)
    np.testing.assert_allclose(t, 0.999 * (1 - np.arange(6) / 5), rtol=1e-5, atol=1e-7)
    # Esser et al. (2024), eq. 23.
    np.testing.assert_allclose(shifted / (1 + shifted), 3 * t / (1 + 2 * t), rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match=r"sigma_schedule=trailing.*1000 steps"):
        check_sigma_schedule("trailing", linear, 1001)
    check_sigma_schedule("trailing", Karras(), 1001)
