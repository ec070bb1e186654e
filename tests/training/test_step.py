"""The train step: turns, accumulation, devices, skipped steps, averages, one compile."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from aigc_jax.core.config import Ema
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Objective
from aigc_jax.distributed.mesh import make_mesh
from aigc_jax.ops.random import normal
from aigc_jax.training import ema as ema_lib
from aigc_jax.training.compile import compile_step
from aigc_jax.training.init import init_state
from aigc_jax.training.step import make_step


class Tug(Objective):
    """Two players on one number line: each pulls the other's place towards its own data."""

    turns = ("left", "left", "right")

    def init(self, rng, batch):
        return {"left": jnp.float32(1.0), "right": jnp.float32(-2.0)}, {"left": jnp.float32(0)}

    def loss(self, player, params, mutables, batch, key_B, step):
        other = params["right" if player == "left" else "left"]
        error_B = (params[player] * other - batch["y"]) ** 2
        mutables = {"left": mutables["left"] + (player == "left")}
        return Mean.of(error_B, batch["weight"]), ({"place": Mean.of(params[player])}, mutables)


BATCH = {"y": np.array([1.0, 3.0, 5.0, 100.0], np.float32), "weight": np.array([1, 2, 1, 0.0])}
BATCH["weight"] = BATCH["weight"].astype(np.float32)


def tug(lr=0.1, **kwargs):
    objective, sgd = Tug(), {p: optax.sgd(lr) for p in ("left", "right")}
    state = init_state(objective, sgd, BATCH, jnp.int32(0), ema="ema" in kwargs)
    return make_step(objective, sgd, **kwargs), state


def test_turns_by_hand():
    """Each turn is plain gradient descent on the mover's own number, and sees the move before."""
    step, state = tug()
    new, metrics = jax.jit(step)(state, BATCH)
    left, right, mean = 1.0, -2.0, 3.0  # the weighted mean of y
    for _ in range(2):
        left -= 0.1 * 2 * (left * right - mean) * right
    right -= 0.1 * 2 * (left * right - mean) * left
    np.testing.assert_allclose(new.params["left"], left, rtol=1e-6)
    np.testing.assert_allclose(new.params["right"], right, rtol=1e-6)
    assert int(new.step) == 1 and int(new.mutables["left"]) == 2
    assert {"left/loss", "right/loss", "left/place", "skipped"} <= set(metrics)
    # The metric of a player with two turns is the mean over both.
    assert float(metrics["left/loss"].weight) == 8.0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_accumulation_is_one_big_batch(family):
    """Under uneven masks, for losses with noise too: gradients, metrics and the update agree."""
    run = tiny.make(family)
    state = tiny.state(run)
    state = state.replace(params=tiny.perturbed(state.params))
    optimizers = {p: optax.sgd(0.1) for p in state.params}
    state = state.replace(opt_state={p: optimizers[p].init(v) for p, v in state.params.items()})
    batch = tiny.batch(family)
    results = [
        jax.jit(make_step(run.objective, optimizers, accumulate=n))(state, batch) for n in (1, 4)
    ]
    # Sums in another order: a few float32 roundings of values up to about 100.
    chex.assert_trees_all_close(results[0][0].params, results[1][0].params, rtol=2e-4, atol=2e-5)
    means = [{name: mean.value() for name, mean in metrics.items()} for _, metrics in results]
    chex.assert_trees_all_close(*means, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_jit_equals_pmap_equals_one_device(family):
    run = tiny.make(family)
    batch = tiny.batch(family)
    optimizers = {p: optax.sgd(0.1, momentum=0.9) for p in dict.fromkeys(run.objective.turns)}
    step = make_step(run.objective, optimizers, Ema(halflife=20.0))
    results = []
    ways = (("data=1", "jit"), ("data=4", "jit"), ("data=4", "pmap"))
    for mesh, how in ways if family == "lm" else ways[::2]:  # compiling takes long
        compiled = compile_step(step, make_mesh(mesh), how)
        make = lambda: init_state(run.objective, optimizers, batch, 0, ema=True)  # noqa: E731
        state = jax.jit(make)()
        state = compiled.put_state(state.replace(params=tiny.perturbed(state.params)))
        for _ in range(2):
            state, metrics = compiled(state, compiled.put_batch(batch))
        assert compiled.compiles == 1
        means = {name: mean.value() for name, mean in metrics.items()}
        results.append(jax.device_get((compiled.get_state(state), means)))
    for other in results[1:]:
        # Sums over devices in another order.
        chex.assert_trees_all_close(results[0], other, rtol=5e-4, atol=5e-5)


@pytest.mark.parametrize("bad", ["left", "right"])
def test_not_finite_skips_every_player(bad):
    """Whoever's turn goes wrong, nobody moves; the step counts, and later steps go on."""
    step, state = tug(ema=Ema(halflife=10.0))

    class Broken(Tug):
        def loss(self, player, params, mutables, batch, key_B, at):
            loss, aux = super().loss(player, params, mutables, batch, key_B, at)
            infinite = (at == 0) & (player == bad)
            return Mean(jnp.where(infinite, jnp.nan, loss.total), loss.weight), aux

    sgd = {p: optax.sgd(0.1, momentum=0.9) for p in ("left", "right")}
    state = init_state(Broken(), sgd, BATCH, jnp.int32(0), ema=True)
    step = jax.jit(make_step(Broken(), sgd, Ema(halflife=10.0)))
    new, metrics = step(state, BATCH)
    for part in ("params", "opt_state", "ema", "mutables"):
        chex.assert_trees_all_equal(getattr(new, part), getattr(state, part))
    assert (int(new.step), int(new.skipped)) == (1, 1)
    assert float(metrics["skipped"].value()) == 1.0
    chex.assert_tree_all_finite(metrics)
    after, metrics = step(new, BATCH)
    assert int(after.skipped) == 1 and float(metrics["skipped"].value()) == 0.0
    assert float(after.params["left"]) != float(state.params["left"])


def test_infinite_gradient_is_not_finite():
    """A finite loss with an infinite slope is skipped too."""

    class Root(Tug):
        turns = ("left",)

        def init(self, rng, batch):
            return {"left": jnp.float32(0.0)}, {}

        def loss(self, player, params, mutables, batch, key_B, step):
            return Mean.of(jnp.sqrt(params["left"]) + 0 * batch["y"]), ({}, mutables)

    sgd = {"left": optax.sgd(0.1)}
    state = init_state(Root(), sgd, BATCH, jnp.int32(0), ema=False)
    new, _ = jax.jit(make_step(Root(), sgd))(state, BATCH)
    assert int(new.skipped) == 1 and float(new.params["left"]) == 0.0


def test_a_bad_update_of_good_gradients_is_not_finite():
    broken = optax.stateless(lambda updates, params: jax.tree.map(lambda u: u / 0.0, updates))
    optimizers = {"left": optax.sgd(0.1), "right": broken}
    state = init_state(Tug(), optimizers, BATCH, jnp.int32(0), ema=False)
    new, _ = jax.jit(make_step(Tug(), optimizers))(state, BATCH)
    chex.assert_trees_all_equal(new.params, state.params)
    assert int(new.skipped) == 1


def test_zero_weight_batch_updates_nothing():
    step, state = tug()
    new, _ = jax.jit(step)(state, {**BATCH, "weight": np.zeros(4, np.float32)})
    chex.assert_trees_all_equal(new.params, state.params)
    assert int(new.skipped) == 0


def test_random_numbers_follow_the_step():
    """The same state draws the same noise; the next step draws other noise."""
    run = tiny.make("diffusion", optim=dict(lr=0.0))
    state, batch = tiny.state(run), tiny.batch("diffusion")
    state = state.replace(params=tiny.perturbed(state.params))
    step = jax.jit(make_step(run.objective, {"model": optax.sgd(0.0)}))
    state = state.replace(opt_state={"model": optax.sgd(0.0).init(state.params["model"])})
    first, a = step(state, batch)
    _, again = step(state, batch)
    _, b = step(first, batch)
    chex.assert_trees_all_equal(a["loss"], again["loss"])
    assert float(a["loss"].total) != float(b["loss"].total)


def test_ema_halflife_counts_examples():
    """After `halflife` examples half of the old average is left, whatever the batch size."""
    for size in (1, 10, 100):
        average = {"w": jnp.float32(1.0)}
        for i in range(1000 // size):
            decay = ema_lib.decay(Ema(halflife=1000.0, rampup=0.0), jnp.int32(i * size), size)
            average = ema_lib.lerp(average, {"w": jnp.float32(0.0)}, 1 - decay)
        np.testing.assert_allclose(average["w"], 0.5, rtol=1e-4)


def test_ema_warms_up():
    """The first step forgets the initialisation; the half-life grows with the examples seen."""
    config = Ema(halflife=1000.0, rampup=0.1)
    assert float(ema_lib.decay(config, jnp.int32(0), 10)) == 0.0
    np.testing.assert_allclose(ema_lib.decay(config, jnp.int32(1000), 10), 0.5**0.1, rtol=1e-5)
    np.testing.assert_allclose(ema_lib.decay(config, jnp.int32(10**6), 10), 0.5**0.01, rtol=1e-5)


def test_mean_merges_exactly():
    values, weights = np.arange(10.0), np.array([0, 1, 2, 3, 0, 5, 1, 1, 2, 0.5])
    parts = [Mean.of(values[i:j], weights[i:j]) for i, j in ((0, 1), (1, 7), (7, 10))]
    merged = parts[0] + parts[1] + parts[2]
    np.testing.assert_allclose(merged.value(), np.average(values, weights=weights), rtol=1e-6)
    assert float(Mean.of(jnp.array([jnp.inf, 1.0]), jnp.array([0.0, 1.0])).value()) == 1.0
    assert float(Mean.of(jnp.ones(2), jnp.zeros(2)).value()) == 0.0


class Prepared(Objective):
    """Two players whose batch gets noise from `prepare`, which must reach both of them alike."""

    turns = ("a", "b")

    def init(self, rng, batch):
        return {player: {"w": jnp.ones(1)} for player in self.turns}, {}

    def prepare(self, params, mutables, batch, key_B, step):
        return {**batch, "x": batch["x"] + normal(key_B, (3,)), "noise": normal(key_B, ())}

    def loss(self, player, params, mutables, batch, key_B, step):
        own = params[player]["w"][0]
        loss = Mean.of(own * batch["x"].sum(-1), batch["weight"])
        again_B = jnp.abs(normal(key_B, ()) - batch["noise"]) < 1e-3  # a key of a turn
        seen = {"x": Mean.of(batch["x"].sum(-1)), "again": Mean.of(again_B.astype(jnp.float32))}
        return loss, (seen, mutables)


@pytest.mark.parametrize(
    "mesh, how, accumulate", [("data=1", "jit", 2), ("data=2", "jit", 1), ("data=2", "pmap", 2)]
)
def test_a_batch_is_prepared_once_with_keys_of_its_own(mesh, how, accumulate):
    """The same on any number of devices and microbatches; another one in the next step."""
    batch = {"x": np.arange(24.0, dtype=np.float32).reshape(8, 3), "weight": np.ones(8, np.float32)}
    objective = Prepared()

    def taken(mesh, how, accumulate):
        optimizers = {player: optax.sgd(0.1) for player in objective.turns}
        step = make_step(objective, optimizers, accumulate=accumulate)
        compiled = compile_step(step, make_mesh(mesh), how)
        state = init_state(objective, optimizers, batch, 0, ema=False)
        state, found = compiled.put_state(state), []
        for _ in range(2):
            state, metrics = compiled(state, compiled.put_batch(batch))
            found.append({name: float(mean.value()) for name, mean in metrics.items()})
        return found

    expected, found = taken("data=1", "jit", 1), taken(mesh, how, accumulate)
    for one, other in zip(expected, found, strict=True):
        assert one["a/x"] == one["b/x"] != batch["x"].sum(-1).mean()
        assert one["a/again"] == one["b/again"] == 0
        assert other == pytest.approx(one, rel=1e-5)
    assert expected[0]["a/x"] != expected[1]["a/x"]
