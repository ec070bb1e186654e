"""Optimizers, schedules and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.core.config import Optim
from aigc_jax.training.optimizers import decay_mask, make_optimizer, make_schedule

PARAMS = {
    "token_embedding": {"embedding": jnp.ones((5, 4))},
    "dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    "conv": {"kernel": jnp.ones((3, 3, 4, 4))},
    "norm": {"scale": jnp.ones(4)},
}


def at(schedule, steps):
    return [float(schedule(s)) for s in steps]


def test_schedules():
    warm = dict(lr=2.0, warmup_steps=4, final_lr_fraction=0.1)
    ramp = [0.5, 1.0, 1.5, 2.0]
    for name in ("constant", "cosine", "linear", "wsd"):
        np.testing.assert_allclose(
            at(make_schedule(Optim(schedule=name, **warm), 104), range(4)), ramp
        )
    ends = {"constant": 2.0, "cosine": 0.2, "linear": 0.2, "wsd": 0.2}
    middle = {"constant": 2.0, "cosine": 1.1, "linear": 1.1, "wsd": 2.0}
    for name, end in ends.items():
        schedule = make_schedule(Optim(schedule=name, **warm), 104)
        np.testing.assert_allclose(at(schedule, [54, 104]), [middle[name], end], rtol=1e-5)
    wsd = make_schedule(Optim(schedule="wsd", lr=1.0, decay_fraction=0.5), 100)
    np.testing.assert_allclose(at(wsd, [50, 75, 100]), [1.0, 0.5, 0.0], atol=1e-6)


def test_weight_decay_leaves_biases_scales_and_embeddings():
    mask = decay_mask(PARAMS)
    assert jax.tree.leaves(mask["dense"]) == [False, True]  # bias, kernel
    assert mask["conv"]["kernel"] and not mask["norm"]["scale"]
    assert not mask["token_embedding"]["embedding"]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon", "adam"])
def test_weight_decay_reaches_only_what_the_mask_allows(name):
    """With a zero gradient only decay moves a parameter."""
    chain, _ = make_optimizer(Optim(name=name, lr=0.1, weight_decay=0.5, schedule="constant"), 10)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = chain.update(zeros, chain.init(PARAMS), PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    assert float(new["dense"]["kernel"].max()) < 1.0
    for leaf in (new["dense"]["bias"], new["norm"]["scale"], new["token_embedding"]["embedding"]):
        np.testing.assert_array_equal(leaf, 1.0)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "muon"])
def test_each_optimizer_descends(name):
    target = jax.tree.map(lambda x: x * 0.5, PARAMS)

    def loss(params):
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
        return sum(((a - b) ** 2).mean() for a, b in pairs)

    chain, _ = make_optimizer(Optim(name=name, lr=0.02, schedule="linear"), 100)

    @jax.jit
    def move(params, state):
        updates, state = chain.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, chain.init(PARAMS)
    for _ in range(100):
        params, state = move(params, state)
    assert float(loss(params)) < 0.3 * float(loss(PARAMS))


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adam():
    key = jax.random.key(0)
    grads = jax.tree.map(lambda x: jax.random.normal(key, x.shape), PARAMS)
    first, second = (muon_updates(grads, adam_lr) for adam_lr in (0.25, 0.5))
    for name in ("dense", "conv"):
        u = np.asarray(first[name]["kernel"])
        singular = np.linalg.svd(u.reshape(-1, u.shape[-1]), compute_uv=False)
        assert singular.max() / singular.min() < 2  # five Newton–Schulz steps: all near one
        np.testing.assert_array_equal(u, second[name]["kernel"])
    # Adam's first step has the same size in every coordinate, in proportion to its own rate.
    for path in (("dense", "bias"), ("token_embedding", "embedding")):
        a, b = (np.abs(u[path[0]][path[1]]) for u in (first, second))
        np.testing.assert_allclose(a, a.flat[0], rtol=1e-3)
        np.testing.assert_allclose(b, 2 * a, rtol=1e-5)


def muon_updates(grads, adam_lr):
    chain, _ = make_optimizer(Optim(name="muon", lr=1.0, adam_lr=adam_lr, schedule="constant"), 10)
    return chain.update(grads, chain.init(PARAMS), PARAMS)[0]


def test_clipping_is_by_global_norm():
    chain, _ = make_optimizer(
        Optim(name="sgd", lr=1.0, b1=0.0, clip_norm=2.0, schedule="constant"), 9
    )
    grads = {"a": jnp.full(9, 3.0), "b": jnp.full(16, 3.0)}  # norm 15
    updates, _ = chain.update(grads, chain.init(grads), grads)
    np.testing.assert_allclose(optax.global_norm(updates), 2.0, rtol=1e-6)
    small = jax.tree.map(lambda g: g / 100, grads)
    updates, _ = chain.update(small, chain.init(grads), grads)
    np.testing.assert_allclose(updates["a"], -0.03, rtol=1e-6)


def test_schedule_follows_steps_not_moves():
    """A player with three turns per step ends its schedule with the run, not in its first third."""
    config = Optim(name="sgd", lr=1.0, b1=0.0, schedule="linear")
    chain, _ = make_optimizer(config, steps=10, turns=3)
    one = {"w": jnp.ones(1)}
    state, sizes = chain.init(one), []
    for _ in range(30):
        updates, state = chain.update(one, state, one)
        sizes.append(-float(updates["w"][0]))
    np.testing.assert_allclose(sizes[::3], np.linspace(1, 0, 11)[:10], rtol=1e-5)
    np.testing.assert_allclose(sizes[::3], sizes[2::3])
