"""Diffusion and MeanFlow: guidance, augmentation, evaluation, images to begin with."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from PIL import Image

import aigc_jax
from aigc_jax.core.conditions import null
from aigc_jax.core.errors import UserError
from aigc_jax.distributed.mesh import make_mesh
from aigc_jax.evaluation.heldout import HeldOut
from aigc_jax.experiment import restore as restore_lib
from aigc_jax.families.diffusion import meanflow
from aigc_jax.families.diffusion.diffusion import Diffusion, DiffusionConfig
from aigc_jax.families.diffusion.guidance import Guidance
from aigc_jax.modalities.image.init_images import load_init_images
from aigc_jax.ops.per_example import expand_like
from aigc_jax.runs import sample as run_lib

KEY_B = jax.random.split(jax.random.key(3), 8)
MEANFLOW = dict(objective=dict(name="meanflow", eval_draws=2), sample=dict(num=3, steps=2))


def made(changes=None):
    run = tiny.make("diffusion", **(changes or {}))
    return run, tiny.params(run, "diffusion")


# Guidance ------------------------------------------------------------------------------------


def test_guidance_is_traced_and_linear():
    """D∅ + g (D_label − D∅), with one compiled program for all steps and scales."""
    run, params = made()
    objective = run.objective
    denoise, guide = jax.jit(objective.denoise), jax.jit(objective._guided)
    x, sigma = jnp.ones((2, 8, 8, 1)), jnp.float32(0.7)
    label = tiny.given(jnp.array([3, 4]))
    sigma_B = jnp.full(2, sigma)
    given, free = (denoise(params["model"], x, sigma_B, k) for k in (label, null(label)))
    assert not np.allclose(given, free, atol=1e-4)
    for scale in (0.0, 1.0, 2.5):
        guided = guide(params["model"], x, sigma, label, Guidance(scale))
        chex.assert_trees_all_close(guided, free + scale * (given - free), atol=1e-4)
    # Only where low ≤ σ ≤ high (Kynkäänniemi et al. 2024).
    for low, high, inside in ((0.5, 0.9, 1), (0.8, 0.0, 0), (0.0, 0.6, 0), (0.5, 0.0, 1)):
        guided = guide(params["model"], x, sigma, label, Guidance(2.5, low, high))
        goal = free + 2.5 * (given - free) if inside else given
        chex.assert_trees_all_close(guided, goal, atol=1e-4)
    options = run.config.sample
    for steps, guidance in ((2, 1.0), (5, 1.0), (3, 4.0)):
        changed = dataclasses.replace(options, steps=steps, guidance=guidance, guidance_low=0.1)
        objective.sample(params, {}, KEY_B[:2], tiny.request(changed, 2, jnp.array([3, 4])))
    assert objective._sample._cache_size() == 1


@pytest.mark.slow
def test_autoguidance_is_linear_in_the_worse_model():
    """D₀ + g (D − D₀) with another network, of another prediction, without classes."""
    run, params = made()
    worse = tiny.make("diffusion", objective=dict(prediction="v"), model=dict(conditional=False))
    worse_params = tiny.params(worse, "diffusion", scale=0.2)
    guide = run.objective.autoguidance(worse.objective, worse_params)
    x, sigma, label = jnp.ones((2, 8, 8, 1)), jnp.float32(0.7), tiny.given(jnp.array([3, 4]))
    own = run.objective.denoise(params["model"], x, jnp.full(2, sigma), label)
    other = worse.objective.denoise(worse_params["model"], x, jnp.full(2, sigma), label)
    assert not np.allclose(own, other, atol=1e-3)
    for scale in (1.0, 2.0):
        guidance = Guidance(jnp.float32(scale))
        guided = run.objective._guided(params["model"], x, sigma, label, guidance, guide)
        chex.assert_trees_all_close(guided, other + scale * (own - other), atol=1e-4)


def test_a_guide_of_other_images_is_refused():
    run, params = made()
    other = Diffusion(DiffusionConfig(), run.objective.model, (16, 16, 1))
    with pytest.raises(UserError, match=r"\(16, 16, 1\)"):
        run.objective.autoguidance(other, params)
    with pytest.raises(UserError, match="another family"):
        run.objective.autoguidance(tiny.make("gan").objective, params)


# Training and evaluation ---------------------------------------------------------------------


@pytest.mark.slow
def test_augmented_training_tells_the_network_and_sampling_tells_it_nothing():
    changes = dict(objective=dict(augment=1.0, augment_kinds=("translate", "flip")))
    run, params = made(changes)
    (kernel,) = (x for k, x in params["model"].items() if k == "augment")
    assert kernel["kernel"].shape[0] == 3  # one number for flip, two for translate
    batch, asked = tiny.batch("diffusion"), []

    class Asked:
        def apply(self, variables, x, time_B, conditions, key_B):
            asked.append(conditions["augmentation"].value)
            return x

    run.objective.model = Asked()
    run.objective.loss("model", params, {}, batch, KEY_B, 0)
    x, label = jnp.ones((2, 8, 8, 1)), tiny.given(jnp.array([1, 2]))
    run.objective.denoise(params["model"], x, jnp.ones(2), label)
    assert (asked[0] != 0).any(1).sum() >= 6 and (asked[1] == 0).all()


def test_the_quarters_of_the_noise_make_up_the_loss():
    run, params = made(dict(objective=dict(eval_draws=8)))
    batch = tiny.batch("diffusion")
    found = jax.jit(run.objective.evaluate)(params, {}, batch, KEY_B)
    quarters = [found[f"loss_quarter_{q}"] for q in (1, 2, 3, 4)]
    # Eight draws: two of each quarter, for each image.
    for quarter in quarters:
        np.testing.assert_allclose(quarter.weight, 2 * batch["weight"].sum(), rtol=1e-5)
    total = sum(q.total for q in quarters) / 8
    np.testing.assert_allclose(total, found["loss"].total, rtol=1e-4)


def test_the_likelihood_of_pixels_is_in_bits():
    """A denoiser that knows that a pixel is one of 17 levels, all equally likely: log₂ 17 bits."""
    objective = tiny.make("diffusion", objective=dict(likelihood_steps=400)).objective
    values = jnp.linspace(-1, 1, 17)
    width = 2 / 16

    def uniform_in_bins(params, x, sigma_B, conditions):
        # The exact D of the uniform density on [−1 − w/2, 1 + w/2].
        sigma = expand_like(sigma_B, x)
        low, high = -1 - width / 2, 1 + width / 2
        a, b = (low - x) / sigma, (high - x) / sigma
        pdf, cdf = jax.scipy.stats.norm.pdf, jax.scipy.stats.norm.cdf
        inside = jnp.where(x > 0, cdf(-a) - cdf(-b), cdf(b) - cdf(a))
        return x + sigma * (pdf(a) - pdf(b)) / jnp.maximum(inside, 1e-30)

    objective.denoise = uniform_in_bins
    # Pixels away from the ends, where σ_min blurs nothing.
    rng = np.random.default_rng(0)
    image = np.round((np.asarray(values)[rng.integers(3, 14, (4, 2, 2, 1))] + 1) * 127.5)
    objective.shape = (2, 2, 1)
    batch = {"image": image.astype(np.uint8), "weight": np.ones(4, np.float32)}
    found = objective.exact_likelihood({"model": None}, {}, batch, KEY_B[:4])["bits_per_dim"]
    assert found.total.shape == (4,)
    np.testing.assert_allclose(found.total, np.log2(17), atol=0.02)


def test_the_likelihood_goes_through_a_network():
    run, params = made(dict(objective=dict(likelihood_steps=2)))
    held_out = HeldOut(run.objective, make_mesh("data=1"), run.objective.exact_likelihood)
    found, _ = held_out(params, {}, [tiny.batch("diffusion")])
    assert np.isfinite(found["bits_per_dim"])
    assert found["bits_per_dim_low"] < found["bits_per_dim"] < found["bits_per_dim_high"]


# MeanFlow ------------------------------------------------------------------------------------

MEAN, STD = 0.3, 0.5


def spread(t):
    return jnp.sqrt((1 - t) ** 2 * STD**2 + t**2)


def flow_map(z, t, r):
    """Where the probability-flow ODE of N(MEAN, STD²) takes z from t to r."""
    return (1 - r) * MEAN + spread(r) / spread(t) * (z - (1 - t) * MEAN)


def exact_average(z, t, span):
    t, span = expand_like(t, z), expand_like(span, z)
    r = t - span
    # At r = t its limit: the derivative of the map.
    velocity = jax.jvp(lambda s: flow_map(z, t, s), (t,), (jnp.ones_like(t),))[1]
    return jnp.where(span > 0, (z - flow_map(z, t, r)) / jnp.where(span > 0, span, 1), velocity)


def test_the_exact_average_velocity_is_its_own_target():
    z = jax.random.normal(jax.random.key(0), (64, 2, 2, 1))
    t, share = jax.random.uniform(jax.random.key(1), (2, 64), minval=0.05, maxval=0.95)
    velocity = exact_average(z, t, jnp.zeros_like(t))
    for span in (t * share, jnp.zeros_like(t)):
        here, goal = meanflow.output_and_target(exact_average, z, t, span, velocity)
        np.testing.assert_allclose(here, goal, rtol=1e-3, atol=1e-3)
    # And no other: half of it is not.
    half = lambda *a: exact_average(*a) / 2  # noqa: E731
    here, goal = meanflow.output_and_target(half, z, t, t * share, velocity)
    assert float(jnp.abs(here - goal).mean()) > 0.05


def test_meanflow_samples_exactly_in_any_number_of_steps():
    run = tiny.make("diffusion", **MEANFLOW)
    objective = run.objective
    objective.levels = 0  # floats come out as they are
    objective.average_velocity = lambda params, z, t, span, *rest: exact_average(z, t, span)
    t = 0.999
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (8, 8, 1)))(KEY_B)
    goal = flow_map(t * noise, t, 0.0)
    for steps in (1, 2, 5):
        options = dataclasses.replace(run.config.sample, steps=steps, sampler="meanflow")
        x = objective.sample({"model": {}}, {}, KEY_B, tiny.request(options, len(KEY_B)))
        np.testing.assert_allclose(x, goal, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_meanflow_trains_on_the_same_step_and_is_a_flow_too():
    run = tiny.make("diffusion", **MEANFLOW)
    state = run.step.put_state(tiny.state(run))
    placed = run.step.put_batch(tiny.batch("diffusion"))
    for _ in range(2):
        state, metrics = run.step(state, placed)
    assert int(state.skipped) == 0 and run.step.compiles == 1
    # Errors divided by themselves: about one, whatever the error.
    assert 0.8 < float(metrics["loss"].value()) <= 1 and float(metrics["error"].value()) > 0.1
    params, label = state.sampling_params, jnp.array([1, 2])
    for sampler in ("meanflow", "dpmpp_2m"):
        for guidance in (1.0, 2.0):
            options = dataclasses.replace(run.config.sample, sampler=sampler, guidance=guidance)
            images = run.objective.sample(params, {}, KEY_B[:2], tiny.request(options, 2, label))
            assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8
    guide = run.objective.autoguidance(run.objective, params)
    with pytest.raises(UserError, match="guidance_workdir"):
        options = dataclasses.replace(run.config.sample, sampler="meanflow")
        request = tiny.request(options, 2, label)
        request = dataclasses.replace(request, guidance_model=guide)
        run.objective.sample(params, {}, KEY_B[:2], request)


# Images to begin with ------------------------------------------------------------------------


def picture(path, size, value=None, mode="RGB"):
    rng = np.random.default_rng(0)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = rng.integers(0, 256, shape).astype(np.uint8) if value is None else value
    Image.fromarray(pixels).save(path)
    return str(path)


def test_given_files_are_fitted_like_prepared_ones(tmp_path):
    image = picture(tmp_path / "i.png", (12, 8))
    white = np.zeros((8, 12), np.uint8)
    white[:, 6:] = 255
    mask = picture(tmp_path / "m.png", (12, 8), white, "L")
    images, masks = load_init_images(image, mask, (8, 8, 1))
    assert images.shape == (1, 8, 8, 1) and masks.shape == (1, 8, 8)
    # The middle 8 of 12 columns: the right half is still the right half.
    np.testing.assert_array_equal(masks[0], np.arange(8)[None].repeat(8, 0) >= 4)
    grey = np.asarray(Image.open(image).convert("L"))[:, 2:10]
    assert np.abs(images[0, :, :, 0].astype(int) - grey).max() <= 2
    array, none = load_init_images(images[0, :, :, 0], None, (8, 8, 1))
    np.testing.assert_array_equal(array, images)
    assert none is None
    _, masks = load_init_images(np.zeros((3, 8, 8, 1), np.uint8), masks[0], (8, 8, 1))
    assert masks.shape == (3, 8, 8)


def test_given_images_that_do_not_fit_are_refused(tmp_path):
    image = picture(tmp_path / "i.png", (12, 8))
    small = picture(tmp_path / "s.png", (10, 8))
    zeros = np.zeros((8, 8), np.uint8)
    for pair, message in (
        ((image, small), "10×8 pixels for an image of 12×8"),
        ((None, image), "pass the image too"),
        ((zeros[:4], None), r"uint8 of the shape \(4, 8\)"),
        ((zeros.astype(float), None), "float64"),
        ((zeros, zeros[:4]), r"shape \(4, 8\)"),
        (("gone.png", None), "gone.png"),
    ):
        with pytest.raises(UserError, match=message):
            load_init_images(*pair, (8, 8, 1))


@pytest.fixture
def workdirs(monkeypatch):
    """Runs that were not trained, under the names of their families."""
    runs = {name: tiny.make(name) for name in ("diffusion", "gan")}
    runs["worse"] = tiny.make("diffusion", objective=dict(prediction="v"))

    def restore(workdir, mesh="", **kwargs):
        made = runs[workdir]
        params = tiny.params(made, "gan" if workdir == "gan" else "diffusion")
        return made, tiny.state(made).replace(params=params, ema={}), 0

    for module in (run_lib, restore_lib):
        monkeypatch.setattr(module, "restore", restore)


@pytest.mark.slow
def test_a_run_inpaints_with_a_guide(workdirs):
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    mask = np.arange(64).reshape(8, 8) % 8 < 4
    draw = functools.partial(aigc_jax.sample, "diffusion", guidance=3.0)
    drawn = draw(image=image, mask=mask, num=2, guidance_workdir="worse", resample=2)
    np.testing.assert_array_equal(drawn[:, :, 4:, 0], np.stack([image[:, 4:]] * 2))
    assert (drawn[0] != drawn[1]).any() and (drawn[:, :, :4, 0] != image[:, :4]).any()
    pair = np.stack([image[:, :, None]] * 2)
    for options, message in (
        (dict(guidance_workdir="gan"), "another family"),
        (dict(mask=mask), "pass the image too"),
        (dict(image=pair, num=3), "3 samples"),
        (dict(image=image, strength=1.5), "sample.strength must be at most 1"),
    ):
        with pytest.raises(UserError, match=message):
            draw(**options)
    with pytest.raises(UserError, match="image"):
        aigc_jax.sample("gan", image=image)


@pytest.mark.slow
def test_a_trained_run_guides_varies_images_and_tells_their_likelihood(tmp_path):
    workdir, worse, gan = (str(tmp_path / name) for name in ("w", "worse", "gan"))
    train = dict(train=dict(steps=1), checkpoint=dict(every=0))
    aigc_jax.train(tiny.recipe("diffusion", **train), workdir, progress=False)
    aigc_jax.train(tiny.recipe("diffusion", seed=1, **train), worse, progress=False)
    aigc_jax.train(tiny.recipe("gan", **train), gan, progress=False)
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    draw = functools.partial(aigc_jax.sample, workdir)
    np.testing.assert_array_equal(draw(image=image, strength=0.0)[0, :, :, 0], image)
    assert (draw(image=image)[0, :, :, 0] != image).any()
    assert (draw(num=2, guidance_workdir=worse, guidance=3.0) != draw(num=2)).any()
    np.testing.assert_array_equal(draw(num=2, guidance_workdir=worse), draw(num=2))
    with pytest.raises(UserError, match="no checkpoint"):
        draw(guidance_workdir=str(tmp_path / "none"))
    with pytest.raises(UserError, match="likelihood_examples"):
        aigc_jax.evaluate(gan, likelihood_examples=1)
    metrics = aigc_jax.evaluate(workdir, likelihood_examples=3)
    assert np.isfinite(metrics["bits_per_dim"]) and "loss_quarter_4" in metrics
