"""Our samplers and the schedulers of diffusers take the same steps on the same noise.

The network is a function of image and timestep with no meaning but one: both sides ask it, and each
question is the state of the walk. So the walks agree step by step if all questions agree, and the
end does. diffusers keeps x_t = x / √(1 + σ²) where ours has x = y + σ n.
Both compute in float32, diffusers σ too, over a product of a thousand ᾱ: 1e-4 of a state of about 1
is what is left of that.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.families.diffusion.diffusion_config import DiffusionConfig
from aigc_jax.families.diffusion.noise_schedules import Karras
from aigc_jax.families.diffusion.preconditioning import make_preconditioning
from aigc_jax.families.diffusion.sampler_steps import Churn
from aigc_jax.families.diffusion.samplers import sample
from aigc_jax.families.diffusion.sigma_schedules import make_sigmas
from aigc_jax.ops.random import fold, normal

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", minversion="0.40")

TOLERANCE = 1e-4
SHAPE = (4, 4, 1)
KEYS = jax.random.split(jax.random.key(0), 3)
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "x": "sample"}


def network(x, time):
    """Bounded, and different everywhere."""
    ramp = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, *SHAPE)
    return 0.8 * np.tanh(np.asarray(x, np.float32) + ramp) + 0.2 * np.cos(float(time) / 300)


def ours(sampler, steps, *, prediction="epsilon", schedule="linear", sigma_schedule="auto",
         clip=False, **kwargs):  # fmt: skip
    """The states at which the network is asked, (x, σ), and the last one."""
    config = DiffusionConfig(prediction=prediction, schedule=schedule)
    noise, asked = make_preconditioning(config), []

    def denoiser(x, sigma):
        asked.append((np.asarray(x), float(sigma)))
        sigma_N = jnp.full(len(KEYS), sigma)
        denoised = noise.denoise(lambda x, t: jnp.asarray(network(x, t[0])), x, sigma_N)
        return jnp.clip(denoised, -1, 1) if clip else denoised

    with jax.disable_jit():
        made = make_sigmas(sigma_schedule, noise.schedule)
        x = sample(denoiser, made, KEYS, SHAPE, steps, sampler=sampler, **kwargs)
    return asked, np.asarray(x)


def noise_of(step):
    return torch.from_numpy(np.array(normal(fold(KEYS, step + 1), SHAPE)))


def alpha(sigma):
    return 1 / np.sqrt(1 + sigma**2)


def same(a, b, scale=1.0):
    np.testing.assert_allclose(a / scale, b / scale, rtol=TOLERANCE, atol=TOLERANCE)


def walk_vp(scheduler, steps, asked, final, **kwargs):
    """diffusers' walk of one question per step, from our first state; both compared at each."""
    scheduler.set_timesteps(steps)
    x, sigma = asked[0]
    x = torch.from_numpy(x * alpha(sigma))
    assert len(scheduler.timesteps) == len(asked)
    for i, t in enumerate(scheduler.timesteps):
        state, sigma = asked[i]
        same(x.numpy(), state * alpha(sigma))
        answer = torch.from_numpy(network(x.numpy(), t))
        extra = {name: make(i) for name, make in kwargs.items()}
        x = scheduler.step(answer, t, x, **extra).prev_sample
    same(x.numpy(), final)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim(prediction, schedule):
    betas = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    for eta, spacing in ((0.0, "trailing"), (0.7, "leading")):
        scheduler = diffusers.DDIMScheduler(
            beta_schedule=betas, prediction_type=PREDICTIONS[prediction], clip_sample=False,
            timestep_spacing=spacing,
        )  # fmt: skip
        asked, final = ours(
            "ddim", 10, prediction=prediction, schedule=schedule, sigma_schedule=spacing, eta=eta
        )
        given = dict(variance_noise=noise_of, eta=lambda i: eta) if eta else {}
        walk_vp(scheduler, 10, asked, final, **given)


def test_ddim_with_clipping():
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    asked, final = ours("ddim", 8, sigma_schedule="trailing", clip=True)
    # Ours takes the noise to be what is left of x by the clipped image.
    walk_vp(scheduler, 8, asked, final, use_clipped_model_output=lambda i: True)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm(prediction, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    for clip, spacing in ((False, "trailing"), (True, "leading")):
        scheduler = diffusers.DDPMScheduler(
            prediction_type=PREDICTIONS[prediction], clip_sample=clip, timestep_spacing=spacing
        )
        draws = iter(range(20))
        monkeypatch.setattr(
            scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: noise_of(next(draws))
        )
        asked, final = ours(
            "ancestral", 20, prediction=prediction, sigma_schedule=spacing, clip=clip
        )
        walk_vp(scheduler, 20, asked, final)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpm_solver(prediction):
    for steps in (6, 20):  # diffusers treats fewer than 15 steps otherwise, but not here
        scheduler = diffusers.DPMSolverMultistepScheduler(
            prediction_type=PREDICTIONS[prediction], timestep_spacing="trailing"
        )
        asked, final = ours("dpmpp_2m", steps, prediction=prediction, sigma_schedule="trailing")
        walk_vp(scheduler, steps, asked, final)


def test_heun():
    """In diffusers' coordinates of this scheduler, which are ours: x = y + σ n."""
    steps = 10  # 999 / 9 is whole: between timesteps diffusers interpolates σ, and we its logarithm
    scheduler = diffusers.HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(steps)
    asked, final = ours("heun", steps, sigma_schedule="linspace")
    assert len(scheduler.timesteps) == len(asked) == 2 * steps - 1
    x = torch.from_numpy(asked[0][0].copy())
    for (state, sigma), t in zip(asked, scheduler.timesteps, strict=True):
        same(x.numpy(), state, np.sqrt(1 + sigma**2))
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.from_numpy(network(scaled.numpy(), t)), t, x).prev_sample
    same(x.numpy(), final)


CHURN = Churn(8.0, 0.01, 40.0, 1.003)


def test_edm_euler(monkeypatch):
    """With all four constants of the churn."""
    from diffusers.schedulers import scheduling_edm_euler

    steps = 9
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    asked, final = ours("euler", steps, prediction="edm", schedule="edm", churn=CHURN)
    x = torch.from_numpy(np.array(80.0 * normal(fold(KEYS, 0), SHAPE)))
    for i, (t, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas, strict=False)):
        monkeypatch.setattr(
            scheduling_edm_euler, "randn_tensor", lambda *a, i=i, **kwargs: noise_of(i)
        )
        state, raised = asked[i]
        churned = CHURN.low <= sigma <= CHURN.high
        assert (raised > float(sigma) * 1.01) == churned
        # Its network is asked at the noise before the churn, ours at the noise after: it gets ours.
        scale = np.sqrt(raised**2 + 0.25)
        answer = network(state / scale, 250 * np.log(raised))
        out = scheduler.step(
            torch.from_numpy(answer), t, x, s_churn=CHURN.amount, s_tmin=CHURN.low,
            s_tmax=CHURN.high, s_noise=CHURN.noise,
        )  # fmt: skip
        denoised = make_preconditioning(DiffusionConfig()).denoise(
            lambda x, t: answer, state, jnp.full(3, raised)
        )
        same(out.pred_original_sample.numpy(), np.asarray(denoised))
        x = out.prev_sample
    same(x.numpy(), final)


def test_karras_ve():
    """EDM's algorithm 2 with its churn, on our grid: the scheduler has one of another form."""
    from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler

    steps, scheduler = 7, KarrasVeScheduler()
    asked, final = ours("heun", steps, prediction="edm", schedule="edm", churn=CHURN)
    grid = np.asarray(make_sigmas("auto", Karras())(jnp.arange(steps + 1), steps))
    x = 80.0 * np.asarray(normal(fold(KEYS, 0), SHAPE))
    noise, k = make_preconditioning(DiffusionConfig()), 0

    def answer(x, sigma):  # such that x + σ · answer is the denoised image
        nonlocal k
        state, ours_sigma = asked[k]
        k += 1
        same(np.asarray(x), state, np.sqrt(1 + sigma**2))
        np.testing.assert_allclose(sigma, ours_sigma, rtol=1e-5)
        sigma_N = jnp.full(3, sigma)
        denoised = noise.denoise(lambda x, t: network(x, t[0]), jnp.asarray(x), sigma_N)
        return (np.asarray(denoised) - x) / sigma

    for i in range(steps):
        sigma, following = float(grid[i]), float(grid[i + 1])
        churned = CHURN.low <= sigma <= CHURN.high
        gamma = min(CHURN.amount / steps, 2**0.5 - 1) if churned else 0.0
        raised = sigma * (1 + gamma)
        hat = x + CHURN.noise * np.sqrt(raised**2 - sigma**2) * noise_of(i).numpy()
        first = answer(hat, raised)
        out = scheduler.step(first, raised, following, hat)
        x = out.prev_sample
        if following > 0:
            second = answer(x, following)
            x = scheduler.step_correct(
                second, raised, following, hat, x, out.derivative
            ).prev_sample
    assert k == len(asked) == 2 * steps - 1
    same(x, final)


def test_flow_matching_with_a_shift():
    """Euler for flow matching, in x_t = (1 − t) x, with the grid shifted towards noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    steps, shift = 8, 3.0
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    t = 0.999 * (1 - np.arange(steps) / steps)
    scheduler.set_timesteps(sigmas=t.tolist())
    noise, asked = make_preconditioning(DiffusionConfig(prediction="flow")), []

    def denoiser(x, sigma):
        asked.append((np.asarray(x), float(sigma)))
        sigma_N = jnp.full(3, sigma)
        return noise.denoise(lambda x, t: network(x, t[0]), x, sigma_N)

    grid = make_sigmas("auto", noise.schedule, shift=shift)
    with jax.disable_jit():
        final = sample(denoiser, grid, KEYS, SHAPE, steps, sampler="euler")
    x = torch.from_numpy(asked[0][0] / (1 + asked[0][1]))
    for (state, sigma), time in zip(asked, scheduler.timesteps, strict=True):
        same(x.numpy(), state / (1 + sigma))
        x = scheduler.step(torch.from_numpy(network(x.numpy(), time)), time, x).prev_sample
    same(x.numpy(), np.asarray(final))
