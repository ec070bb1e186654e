"""Quantisers by hand: levels and codes, k-means, the codebook that follows, how batches are cut."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.families.vq.quantizers import FSQ, VQ, perplexity, usage_metrics
from aigc_jax.ops import vector_quantization as q

RNG = np.random.default_rng(0)
KMEANS = jax.jit(q.kmeans, static_argnums=(2, 3))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3,), (2, 4, 7)])
def test_fsq_codes_are_the_levels_one_to_one(levels):
    """Every code has its own levels; quantising them again gives the code back."""
    count = int(np.prod(levels))
    vectors = q.fsq_decode(jnp.arange(count), levels)
    assert len(np.unique(np.round(vectors, 4), axis=0)) == count
    assert np.abs(vectors).max() <= 1
    # What must come in for these levels to come out.
    width = np.maximum((np.array(levels) - 1) * (1 - q.SHRINK) / 2, 0.5 + q.SHRINK)
    offset = np.where(np.array(levels) % 2 == 0, 0.5, 0)
    place = np.asarray(vectors) * [n // 2 for n in levels]
    inner = np.clip((place + offset) / width, -0.999, 0.999)
    again, code = q.fsq(jnp.arctanh(inner) - np.arctanh(offset / width), levels)
    np.testing.assert_array_equal(code, np.arange(count))
    np.testing.assert_allclose(again, vectors, atol=1e-6)


def test_fsq_by_hand():
    """Five levels: −2 … 2 in halves; four: −2 … 1 in halves; zero stays zero, and limits hold."""
    z = jnp.array([[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0], [0.3, 0.0]])
    vectors, code = q.fsq(z, (5, 4))
    np.testing.assert_allclose(vectors, [[0, 0], [1, 0.5], [-1, -1], [0.5, 0]], atol=1e-6)
    np.testing.assert_array_equal(code, [2 + 5 * 2, 4 + 5 * 3, 0, 3 + 5 * 2])
    np.testing.assert_allclose(q.fsq_bound(jnp.zeros((1, 2)), (5, 4)), 0, atol=1e-6)


def test_fsq_gradient_is_that_of_the_bound():
    levels, z = (8, 5), jnp.array([0.4, -0.7])
    grad = jax.jacobian(lambda z: q.fsq(z, levels)[0])(z)
    half = np.array([4.0, 2.0])
    np.testing.assert_allclose(grad, jax.jacobian(lambda z: q.fsq_bound(z, levels))(z) / half)
    assert (np.diag(grad) > 0.1).all()


def test_straight_through():
    value, grad = jax.value_and_grad(lambda z: 3 * q.straight_through(z, jnp.round(z)))(0.8)
    assert (value, grad) == (3.0, 3.0)


def test_kmeans_by_hand():
    """Two far groups, with weights and a row that does not count, and the codes in their middle."""
    z = jnp.array([[jnp.inf], [0.0], [10.0], [1.0], [11.0], [12.0]])
    weight = jnp.array([0.0, 1, 1, 3, 1, 1])
    codebook, members = KMEANS(z, weight, 2, 5)
    np.testing.assert_allclose(codebook[:, 0], [0.75, 11.0])
    np.testing.assert_allclose(members, [4, 3])


def test_kmeans_of_fewer_vectors_than_codes():
    codebook, members = KMEANS(jnp.array([[0.0], [5.0], [1.0]]), jnp.array([1.0, 0, 1]), 4, 3)
    assert set(np.unique(codebook)) == {0.0, 1.0} and sorted(members.tolist()) == [0, 0, 1, 1]
    codebook, members = KMEANS(jnp.ones((3, 2)), jnp.zeros(3), 2, 1)
    chex.assert_tree_all_finite(codebook)
    assert float(members.sum()) == 0


def halves(*arrays):
    return zip(*(np.split(x, 2) for x in arrays), strict=True)


def test_a_pool_holds_vectors_of_the_batch_and_adds_up():
    """Each slot is about one of the vectors, none without weight; two halves make the whole."""
    z = RNG.choice([-1, 1], (4000, 8)).astype(np.float32)
    weight, draw = np.ones(4000, np.float32), uniform(4000)
    z[::2], weight[::2] = np.nan, 0
    pool = jax.jit(q.reservoir, static_argnums=3)
    sums, weights = jax.device_get(pool(z, weight, draw, 64))
    parts = jax.device_get([pool(x[0], x[1], x[2], 64) for x in halves(z, weight, draw)])
    chex.assert_trees_all_close((sums, weights), jax.tree.map(np.add, *parts), rtol=1e-5)
    picked = np.asarray(sums / weights[:, None])
    assert (weights > 0).all() and np.isfinite(picked).all()
    near = np.abs(np.abs(picked) - 1).max(1) < 0.2
    assert near.mean() > 0.6 and len(np.unique(np.sign(picked[near]), axis=0)) > 20


def vectors(n=96, size=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size)).astype(np.float32)


def uniform(n=96, seed=0):
    return np.random.default_rng(seed + 100).uniform(size=(n, 2)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def quantized(quantizer, state, z):
    return quantizer.quantize(state, z)


@functools.partial(jax.jit, static_argnums=0)
def taken(quantizer, state, step, z, weight, draw):
    """The state with one microbatch of a step in it."""
    state = quantizer.begin_step(state, step)
    _, code, _ = quantizer.quantize(state, z)
    return quantizer.accumulate(state, z, code, weight, draw)


@functools.partial(jax.jit, static_argnums=0)
def settled(quantizer, state):
    return quantizer.finalize(state)


def stepped(quantizer, state, step, z, weight=None):
    """The state settled after a step on z."""
    weight = np.ones(len(z), np.float32) if weight is None else weight
    state = taken(quantizer, state, step, z, weight, uniform(len(z)))
    return jax.device_get(settled(quantizer, state))


def make(kind, **changes):
    if kind == "fsq":
        return FSQ((3, 3, 2), 0.9)
    options = dict(
        num_codes=6, size=3, decay=0.9, dead_code_threshold=0.1, l2_normalize=kind == "spherical"
    )
    return VQ(**{**options, **changes})


def test_a_codebook_starts_by_kmeans_on_the_first_batch():
    """Tight groups: autoencoded as they are at first, then each has a code in its middle."""
    vq = make("vq", num_codes=3)
    middle = np.array([[5.0, 0, 0], [0, 5, 0], [0, 0, 5]])
    z = (middle[np.arange(96) % 3] + 0.1 * RNG.normal(size=(96, 3))).astype(np.float32)
    same, code, cost = jax.device_get(quantized(vq, vq.init(), z))
    chex.assert_trees_all_equal(same, z)
    assert not code.any() and not cost.any()
    first = stepped(vq, vq.init(), 0, z)
    order = first["codebook"].argmax(1)
    if sorted(order.tolist()) == [0, 1, 2]:  # or k-means was unlucky, and death must help
        np.testing.assert_allclose(first["codebook"], middle[order], atol=0.3)
    assert int(first["started"]) == 1
    np.testing.assert_allclose(first["counts"].sum(), 96, rtol=1e-5)
    np.testing.assert_allclose(
        first["sums"], first["codebook"] * first["counts"][:, None], rtol=1e-5
    )


def test_a_batch_without_weight_starts_no_codebook():
    vq = make("vq")
    state = stepped(vq, vq.init(), 0, vectors() * np.nan, np.zeros(96, np.float32))
    assert int(state["started"]) == 0
    chex.assert_tree_all_finite(state)


def started(vq, seed=1):
    """A state in step 5, as if k-means had found random codes."""
    state = {**jax.device_get(vq.init()), "step": np.int32(5), "started": np.int32(1)}
    state |= {"counts": np.full(vq.num_codes, 16, np.float32)}
    codebook = vectors(vq.num_codes, vq.size, seed)
    if vq.l2_normalize:
        codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
    return {**state, "codebook": codebook, "sums": 16 * codebook}


def test_without_memory_the_codebook_takes_a_step_of_kmeans():
    vq = make("vq", decay=0.0, dead_code_threshold=0.0)
    state, z = started(vq), vectors()
    moved = stepped(vq, state, 5, z)
    distance = ((np.asarray(z)[:, None] - np.asarray(state["codebook"])) ** 2).sum(-1)
    own = distance.argmin(1)
    for k in range(6):
        mean = np.asarray(z)[own == k].mean(0) if (own == k).any() else state["codebook"][k]
        np.testing.assert_allclose(moved["codebook"][k], mean, atol=1e-5)
    np.testing.assert_allclose(moved["uses"], np.bincount(own, minlength=6))


def test_the_codebook_is_the_decayed_mean_of_its_members():
    vq = make("vq", dead_code_threshold=0.0)
    state, z = started(vq), vectors()
    _, code, cost = quantized(vq, state, z)
    own = np.asarray(code)
    moved = stepped(vq, state, 5, z)
    for k in range(6):
        n, total = (own == k).sum(), np.asarray(z)[own == k].sum(0)
        mean = (0.9 * 16 * state["codebook"][k] + 0.1 * total) / (0.9 * 16 + 0.1 * n)
        np.testing.assert_allclose(moved["codebook"][k], mean, atol=1e-5)
    missing = ((np.asarray(z) - np.asarray(state["codebook"])[own]) ** 2).mean(-1)
    np.testing.assert_allclose(cost, missing, rtol=1e-4)


def test_a_dead_code_moves_to_a_vector_of_the_batch_and_has_time():
    vq = make("vq", num_codes=4, dead_code_threshold=0.5)
    state = started(vq)
    far = state["codebook"].copy()
    far[2] = 100
    state |= {"codebook": far, "counts": np.array([30, 30, 1, 30], np.float32)}
    state |= {"sums": far * state["counts"][:, None]}
    z = vectors()
    moved = stepped(vq, state, 5, z)
    assert np.abs(moved["codebook"][2]).max() < np.abs(z).max() + 1e-3
    np.testing.assert_allclose(moved["counts"][2], (0.9 * 91 + 0.1 * 96) / 4, rtol=1e-5)
    np.testing.assert_allclose(
        moved["sums"][2], moved["codebook"][2] * moved["counts"][2], rtol=1e-5
    )
    # The others are where they would be anyway, and nothing dies where nothing may.
    calm = stepped(VQ(4, 3, 0.9, 0.0, False), state, 5, z)
    kept = np.array([0, 1, 3])
    np.testing.assert_allclose(moved["codebook"][kept], calm["codebook"][kept], rtol=1e-6)
    assert np.abs(calm["codebook"][2]).max() > 50


@pytest.mark.parametrize("kind", ["fsq", "spherical"])
def test_statistics_do_not_depend_on_how_a_batch_is_cut(kind):
    """One batch, microbatches, and devices whose sums are averaged; rows without weight are not."""
    quantizer, states = make(kind), []
    weight = RNG.uniform(0.5, 2, 96).astype(np.float32)
    weight[::3] = 0
    nonsense = np.where(weight[:, None] > 0, 0, np.nan).astype(np.float32)
    for cuts, devices, more in ((1, 1, 0), (4, 1, 0), (2, 2, 0), (1, 1, nonsense)):
        state = quantizer.init()
        for step in range(3):
            z, shares = vectors(seed=step) + more, []
            for device in range(devices):
                part, w = z[device::devices], weight[device::devices]
                draw = uniform(seed=step)[device::devices]
                own = state
                for i in range(cuts):
                    own = taken(quantizer, own, step, part[i::cuts], w[i::cuts], draw[i::cuts])
                shares.append(jax.device_get(own))
            state = jax.tree.map(
                lambda *x: sum(x) / len(x) if x[0].dtype == np.float32 else x[0], *shares
            )
        found = jax.device_get(settled(quantizer, state))
        states.append((found.get("codebook", 0), found["uses"] / found["uses"].sum()))
    for other in states[1:]:
        chex.assert_trees_all_close(states[0], other, rtol=1e-4, atol=1e-5)
    assert (states[0][1] > 0).sum() > 5


def test_within_a_step_the_codebook_stays():
    vq = make("vq")
    at = jax.jit(vq.begin_step)
    state = taken(vq, started(vq), 5, vectors(), np.ones(96, np.float32), uniform())
    chex.assert_trees_all_equal(at(state, 5), state)
    assert (at(state, 6)["codebook"] != state["codebook"]).any()


def test_short_vectors_of_length_one():
    vq = make("spherical")
    z = vectors()
    state = started(vq)
    out, code, _ = quantized(vq, state, z)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=1e-5)
    cosine = z @ state["codebook"].T
    np.testing.assert_array_equal(code, cosine.argmax(1))
    moved = stepped(vq, state, 5, z)
    np.testing.assert_allclose(np.linalg.norm(moved["codebook"], axis=-1), 1, rtol=1e-5)


def test_use_by_hand():
    """100 codes: one has half of all, one less than 1 % of an equal share."""
    counts = jnp.ones(100).at[0].set(98.0).at[1].set(0.005).at[2].set(0.0)
    found = {k: float(m.value()) for k, m in usage_metrics(counts).items()}
    assert found["codes_used"] == pytest.approx(0.98)
    share = np.asarray(counts / counts.sum(), np.float64)
    entropy = -sum(p * np.log(p) for p in share if p)
    assert found["code_perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)
    assert float(perplexity(jnp.full(8, 1 / 8))) == pytest.approx(8)
    assert float(usage_metrics(jnp.zeros(4))["codes_used"].value()) == 0


def test_every_corner_of_fsq_can_be_reached():
    levels = (4, 3, 2)
    corners = jnp.array(list(itertools.product([-20.0, 20.0], repeat=3)))
    _, code = q.fsq(corners, levels)
    assert len(set(code.tolist())) == 8 and int(code.max()) == 23 and int(code.min()) == 0
