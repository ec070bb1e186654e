"""Diffusion of sound and of video: one and three spatial axes, on the real train step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from aigc_jax.core.errors import UserError
from aigc_jax.families.diffusion.diffusion import Diffusion, DiffusionConfig, DiffusionSample
from aigc_jax.families.diffusion.dit import DiT, DiTConfig
from aigc_jax.families.diffusion.meanflow import MeanFlow, MeanFlowConfig, MeanFlowSample
from aigc_jax.families.diffusion.unet import UNet, UNetConfig
from aigc_jax.training.init import init_state
from aigc_jax.training.step import make_step

SHAPES = {"sound": (8, 2), "video": (4, 4, 4, 1)}
NETWORKS = {
    "unet": UNet(UNetConfig((8, 8), 1, (1,), heads=1, middle_blocks=0, embedding=16), 4),
    "dit": DiT(DiTConfig(2, 32, 2, 2, frequencies=16), 4),
}
FEW = [("unet", "sound"), ("dit", "video")]
CASES = [(name, kind) for name in NETWORKS for kind in SHAPES]
OPTIONS = DiffusionSample(steps=12, sampler="ddim")


def examples(shape, count=4, seed=0):
    """One example of ±1 for each class."""
    rng = np.random.default_rng(seed)
    return rng.choice([-1.0, 1.0], (count, *shape)).astype(np.float32)


def objective_of(name, kind, family=Diffusion, config=None, levels=0, **kwargs):
    config = config or DiffusionConfig(condition_dropout=0.0, sigma_data=1.0)
    return family(config, NETWORKS[name], SHAPES[kind], levels, field=kind, **kwargs)


def batch_of(kind, size=16):
    x, label = examples(SHAPES[kind]), np.arange(size) % 4
    return {kind: x[label], "label": label.astype(np.int32), "weight": np.ones(size, np.float32)}


def overfit(objective, batch, steps):
    """The loss of each step, and the parameters at the end."""
    optimizers = {"model": optax.adam(5e-3)}
    state = jax.jit(lambda: init_state(objective, optimizers, batch))()
    step = make_step(objective, optimizers)

    @jax.jit
    def run(state):
        def body(state, _):
            state, metrics = step(state, batch)
            return state, metrics["loss"].value()

        return jax.lax.scan(body, state, length=steps)

    state, loss = run(state)
    assert int(state.skipped) == 0
    return np.asarray(loss), state.params


def check_overfit(name, kind, steps):
    """Each class has one example: it is what a sample of the class must be."""
    objective, batch = objective_of(name, kind), batch_of(kind)
    loss, params = overfit(objective, batch, steps)
    assert loss[-20:].mean() < 0.5 < loss[:3].mean()
    label = jnp.arange(4)
    keys = jax.random.split(jax.random.key(1), 4)
    x = objective.sample(params, {}, keys, tiny.request(OPTIONS, 4, label))
    assert x.shape == (4, *SHAPES[kind]) and x.dtype == jnp.float32
    error = np.abs(np.asarray(x) - batch[kind][:4]).mean()
    return error, objective, params


@pytest.mark.parametrize("name, kind", FEW)
def test_one_batch_is_learned_by_heart(name, kind):
    error, objective, params = check_overfit(name, kind, 300)
    assert error < 0.4  # what has not learned is off by 1
    # Part of an example is kept while the rest is generated.
    known, keys = examples(SHAPES[kind]), jax.random.split(jax.random.key(2), 4)
    mask = np.zeros((4, *SHAPES[kind][:-1]), bool)
    mask[:, :2] = True
    request = tiny.request(OPTIONS, 4, jnp.arange(4), inpaint_mask=mask, **{kind: known})
    filled = objective.sample(params, {}, keys, request)
    np.testing.assert_array_equal(filled[:, 2:], known[:, 2:])
    assert np.abs(np.asarray(filled) - known).mean() < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("name, kind", CASES)
def test_one_batch_is_learned_by_heart_to_the_end(name, kind):
    error, *_ = check_overfit(name, kind, 1500)
    assert error < 0.1


@pytest.mark.parametrize("name, kind", [
    case if case in FEW else pytest.param(*case, marks=pytest.mark.slow) for case in CASES
])  # fmt: skip
def test_everything_that_a_model_does_takes_any_number_of_axes(name, kind):
    """Losses, evaluation, likelihood, guidance, augmentation and all samplers; traced only."""
    batch, keys = batch_of(kind, 4), jax.random.split(jax.random.key(0), 4)
    batch[kind] = (255 * (batch[kind] > 0)).astype(np.uint8)
    kinds = ("flip", "translate", "contrast", "cutout")
    for family, config, options in (
        (
            Diffusion,
            DiffusionConfig(augment=0.5, augment_kinds=kinds),
            DiffusionSample(guidance=2.0, sampler="dpmpp_2m"),
        ),
        (MeanFlow, MeanFlowConfig(guidance=2.0), MeanFlowSample(guidance=2.0)),
    ):
        objective = objective_of(name, kind, family, config, levels=256)
        params, _ = jax.eval_shape(objective.init, jax.random.key(0), batch)
        params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tiny.nn.unbox(params))
        jax.eval_shape(lambda p, o=objective: o.loss("model", p, {}, batch, keys, 0), params)
        jax.eval_shape(lambda p, o=objective: o.evaluate(p, {}, batch, keys), params)
        jax.eval_shape(lambda p, o=objective: o.exact_likelihood(p, {}, batch, keys), params)
        request = tiny.request(options, 4, jnp.arange(4))
        x = jax.eval_shape(lambda p, o=objective, r=request: o.sample(p, {}, keys, r), params)
        assert (x.shape, x.dtype) == ((4, *SHAPES[kind]), jnp.uint8)


def test_augmentation_of_images_is_refused_for_sound():
    config = DiffusionConfig(augment=0.1, augment_kinds=("flip", "rotate"))
    with pytest.raises(UserError, match=r"objective\.augment_kinds has rotate"):
        objective_of("unet", "sound", config=config)
