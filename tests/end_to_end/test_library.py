"""The library as a library: loading, own loops, own arrays, own networks and optimizers."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from helpers.own_network import HalvedUNet, halved_unet

import aigc_jax
from aigc_jax.core.errors import UserError

SHORT = dict(train=dict(steps=2, log_every=1), checkpoint=dict(every=0))


def arrays(size=24, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, 8, 8, 1)).astype(np.uint8)
    return {"image": image, "label": rng.integers(0, 10, size).astype(np.int32)}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("library") / "vae")
    aigc_jax.train(tiny.recipe("vae", **SHORT), workdir, progress=False)
    return workdir


def test_a_workdir_in_three_lines(vae):
    """The objective and its parameters; `apply` is pure: jitted and differentiated here."""
    model = aigc_jax.load(vae)
    batch, key_B = tiny.batch("vae"), jax.random.split(jax.random.key(0), 8)
    images = model.apply(model.params, batch, key_B, method="reconstruct")
    assert images.shape == (8, 8, 8, 1)

    @jax.jit
    def loss(params):
        return model.apply(params, batch, key_B)["loss"].value()

    grads = jax.grad(loss)(model.params)
    assert np.isfinite(loss(model.params)) and optax.global_norm(grads) > 0
    objective, params = model
    assert objective is model.objective and params is model.params and model.step == 2


def test_loaded_params_are_the_evaluated_ones_without_optimizer(vae):
    run, state, step = aigc_jax.restore(vae)
    _, light, _ = aigc_jax.restore(vae, optimizer=False)
    assert step == 2 and jax.tree.leaves(state.opt_state) and light.opt_state == {}
    chex.assert_trees_all_equal(state.replace(opt_state={}), light)
    chex.assert_trees_all_equal(aigc_jax.load(vae).params, jax.device_get(state.sampling_params))
    assert run.objective.turns == ("model",)


def test_the_train_step_in_a_loop_of_ones_own():
    """The README's ten lines: own arrays, own loop, own optimizer."""
    config = aigc_jax.parse_config(tiny.recipe("vae"))
    dataset = aigc_jax.load_dataset(config.data, arrays())
    objective = aigc_jax.make_objective(config, dataset.spec)
    mesh = aigc_jax.make_mesh("data=1")
    optimizers = {player: optax.adam(1e-2) for player in objective.turns}
    step = aigc_jax.compile_step(aigc_jax.make_step(objective, optimizers), mesh)
    batch = {**arrays(8), "weight": np.ones(8, np.float32)}
    state = step.put_state(aigc_jax.init_state(objective, optimizers, batch))
    losses = []
    for _ in range(20):
        state, metrics = step(state, step.put_batch(batch))
        losses.append(float(metrics["loss"].value()))
    assert losses[-1] < losses[0] and int(state.step) == 20 and step.compiles == 1


class Recorder(aigc_jax.Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, step, state):
        self.calls.append(("begin", step))

    def on_step_end(self, step):
        self.calls.append(("step", step))

    def on_record(self, record):
        self.calls.append((record["kind"], record["step"]))

    def on_train_end(self, step, state):
        self.calls.append(("end", int(state.step)))


def test_arrays_and_callbacks_given_from_python(tmp_path):
    workdir, recorder, seen = str(tmp_path / "w"), Recorder(), []
    periodic = aigc_jax.Periodic(2, lambda step, state: seen.append((step, int(state.step))))
    recipe = tiny.recipe("vae", **SHORT, eval=dict(every=2))
    options = dict(data=arrays(), callbacks=[recorder, periodic], progress=False)
    record = aigc_jax.train(recipe, workdir, **options)
    assert record["kind"] == "eval" and np.isfinite(record["loss"])
    assert recorder.calls == [
        *[("begin", 0), ("train", 1), ("step", 1), ("train", 2), ("step", 2)],
        *[("eval", 2), ("end", 2)],
    ]
    assert seen == [(2, 2)]
    with pytest.raises(UserError, match="data="):
        aigc_jax.evaluate(workdir)
    other = {**arrays(), "image": arrays(seed=1)["image"]}
    with pytest.raises(UserError, match="data="):
        aigc_jax.train(recipe, workdir, data=other, progress=False)
    assert np.isfinite(aigc_jax.evaluate(workdir, data=arrays())["loss"])
    assert aigc_jax.sample(workdir, 2).shape == (2, 8, 8, 1)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("own") / "w")
    parts = dict(network=halved_unet(), optimizer=optax.sgd(1e-2))
    aigc_jax.train(tiny.recipe("diffusion", **SHORT), workdir, **parts, progress=False)
    return workdir


def test_a_network_of_ones_own_is_found_again(own):
    model = aigc_jax.load(own)
    assert any(type(part) is HalvedUNet for part in vars(model.objective).values())
    assert np.isfinite(aigc_jax.evaluate(own)["loss"])
    assert aigc_jax.sample(own, 2).shape == (2, 8, 8, 1)


def test_a_run_with_parts_of_ones_own_resumes_with_the_same_only(own):
    longer = tiny.recipe("diffusion", **{**SHORT, "train": dict(steps=3, log_every=1)})
    with pytest.raises(UserError, match="network="):
        aigc_jax.train(longer, own, progress=False)
    with pytest.raises(UserError, match="optimizer="):
        aigc_jax.train(longer, own, network=halved_unet(), progress=False)
    parts = dict(network=halved_unet(), optimizer=optax.sgd(1e-2))
    aigc_jax.train(longer, own, **parts, progress=False)
    assert aigc_jax.load(own).step == 3


def test_a_network_that_cannot_be_imported_is_asked_for(tmp_path):
    class Local(HalvedUNet):
        pass

    workdir, network = str(tmp_path / "w"), halved_unet(Local)
    aigc_jax.train(tiny.recipe("diffusion", **SHORT), workdir, network=network, progress=False)
    with pytest.raises(UserError, match="network="):
        aigc_jax.load(workdir)
    objective = aigc_jax.load(workdir, network=network).objective
    assert any(part is network for part in vars(objective).values())


def test_an_optimizer_must_cover_all_players(tmp_path):
    only = dict(optimizer={"critic": optax.sgd(1e-2)})
    with pytest.raises(UserError, match="generator"):
        aigc_jax.train(tiny.recipe("gan", **SHORT), str(tmp_path / "w"), **only, progress=False)


IMPORT = """
import os, signal, sys
before = dict(os.environ), [signal.getsignal(s) for s in signal.valid_signals()], sys.excepthook
import aigc_jax
after = dict(os.environ), [signal.getsignal(s) for s in signal.valid_signals()], sys.excepthook
assert before == after, "importing has side effects"
assert "jax" not in sys.modules and "absl" not in sys.modules, "importing imports JAX"
aigc_jax.train, aigc_jax.sample, aigc_jax.load
assert dict(os.environ) == before[0] and sys.excepthook is before[2]
"""


def test_importing_has_no_side_effects():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_everything_exported_exists():
    assert all(getattr(aigc_jax, name) is not None for name in aigc_jax.__all__)
    assert jnp.isfinite(aigc_jax.Mean.of(jnp.ones(2)).value())
