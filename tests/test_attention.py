"""Attention, who sees whom, rotary positions and the dense product, each against plain sums."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.ops.attention import (
    attention,
    positions_of,
    rotary_frequencies,
    rotate,
    visible,
)
from aigc_jax.ops.dense import dense

B, T, S, H, K, D = 2, 3, 5, 4, 2, 6
RNG = np.random.default_rng(0)
Q = RNG.normal(size=(B, T, H, D)).astype(np.float32)
KEYS, VALUES = RNG.normal(size=(2, B, S, K, D)).astype(np.float32)
MASK = RNG.uniform(size=(B, T, S)) < 0.6
MASK[1, 2] = False  # a query that sees nothing


# Attention -----------------------------------------------------------------------------------


def plain(mask=None, scale=D**-0.5, softcap=0.0):
    """One query head at a time; each key head serves two neighbours."""
    out = np.zeros((B, T, H, D))
    for b, t, h in np.ndindex(B, T, H):
        logits = KEYS[b, :, h // 2] @ Q[b, t, h].astype(np.float64) * scale
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(logits) * (1.0 if mask is None else mask[b, t])
        out[b, t, h] = weights / max(weights.sum(), 1e-30) @ VALUES[b, :, h // 2]
    return out


@pytest.mark.parametrize(
    "options", [{}, dict(scale=0.3), dict(softcap=0.5), dict(scale=2.0, softcap=1.5)], ids=str
)
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_attention_is_its_formula(mask, options):
    found = attention(Q, KEYS, VALUES, mask, **options)
    seen = np.ones((B, T), bool) if mask is None else mask.any(-1)
    np.testing.assert_allclose(found[seen], plain(mask, **options)[seen], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found).all()


def test_a_mask_of_one_row_serves_all():
    chex.assert_trees_all_equal(
        attention(Q, KEYS, VALUES, MASK[:1]), attention(Q, KEYS, VALUES, MASK[[0, 0]])
    )


def test_a_query_that_sees_nothing_has_finite_gradients():
    grads = jax.jit(jax.grad(lambda *a: attention(*a, MASK).sum(), argnums=(0, 1, 2)))
    grads = grads(Q, KEYS, VALUES)
    chex.assert_tree_all_finite(grads)


def test_bfloat16_is_softmaxed_in_float32():
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (Q, KEYS, VALUES)]
    traced = jax.make_jaxpr(attention)(*halves, MASK)
    inside = [e for e in traced.jaxpr.eqns if e.primitive.name == "exp"]
    assert [e.outvars[0].aval.dtype for e in inside] == [jnp.float32]
    assert traced.out_avals[0].dtype == jnp.bfloat16


def test_attention_dropout_belongs_to_the_example():
    """Neighbours do not change an example's weights; the rate and the mean are as asked."""
    # Equal keys and one-hot values: the output shows which weights are left.
    q, k = np.zeros((2, 80, 1, 40), np.float32), np.zeros((2, 40, 1, 40), np.float32)
    v = np.tile(np.eye(40, dtype=np.float32)[None, :, None], (2, 1, 1, 1))
    drop = jax.jit(lambda q, keys: attention(q, k, v, dropout=(keys, 0.25)))
    keys = jax.random.split(jax.random.key(0), 2)
    left = np.asarray(drop(q, keys))
    assert abs((left == 0).mean() - 0.25) < 0.03  # 6,400 draws: a standard error of 0.005
    np.testing.assert_allclose(left[left > 0], 1 / 40 / 0.75, rtol=1e-5)
    assert not np.array_equal(left[0], left[1])
    np.testing.assert_array_equal(drop(q, keys[::-1]), left[::-1])


# Who sees whom -------------------------------------------------------------------------------


def by_hand(query, key, causal=True, window=0, documents=None):
    """The same, pair by pair."""
    seen = np.zeros((len(query), len(key)), bool)
    for i, q in enumerate(query):
        for j, k in enumerate(key):
            seen[i, j] = k >= 0 and (not causal or k <= q)
            if window:
                seen[i, j] &= abs(q - k) < window
            if documents is not None:
                seen[i, j] &= documents[0][i] == documents[1][j]
    return seen


PLACES = np.array([0, 1, 2, 3, 4, 5, -1])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 3, 100])
def test_visible(causal, window):
    expected = by_hand(PLACES, PLACES, causal, window)
    place = PLACES[None]
    found = visible(place, place, causal=causal, window=window)
    np.testing.assert_array_equal(found[0], expected)
    traced = visible(place, place, causal=causal, window=jnp.int32(window))
    np.testing.assert_array_equal(traced[0], expected)
    if window == 3:  # itself included
        assert found[0, 4].sum() == (3 if causal else 4)  # …2, 3, 4; 5 too, but 6 is padding


def test_documents_do_not_see_each_other():
    segments = np.array([1, 1, 1, 2, 2, 2, 0])
    place = np.array([0, 1, 2, 0, 1, 2, -1])
    found = visible(place[None], place[None], (segments[None], segments[None]))
    np.testing.assert_array_equal(found[0], by_hand(place, place, documents=(segments, segments)))
    assert not found[0, 3, :3].any() and not found[0, 3:6, :3].any() and not found[0, :, 6].any()


def test_positions_count_within_documents():
    segments = np.array([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 3, 3, 1, 2, 0]])
    expected = [[0, 1, 0, 1, 2, -1, -1], [0, 1, 2, 3, 4, 5, 6], [-1, -1, 0, 1, 0, 0, -1]]
    np.testing.assert_array_equal(positions_of(jnp.asarray(segments)), expected)


# Rotary positions ----------------------------------------------------------------------------


def test_rotations_depend_on_the_distance_only_and_keep_lengths():
    frequencies, _ = rotary_frequencies(D, 100.0)
    q, k = Q[:1, :1], KEYS[:1, :1]

    def product(m, n):
        a, b = (rotate(x, jnp.array([[p]]), frequencies) for x, p in ((q, m), (k, n)))
        return np.einsum("bthd,bskd->hk", a, b)

    np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4, atol=1e-4)
    assert not np.allclose(product(7, 3), product(7, 4), atol=1e-3)
    np.testing.assert_allclose(product(0, 0), np.einsum("bthd,bskd->hk", q, k), rtol=1e-6)
    turned = rotate(Q, np.full((B, T), 9), frequencies)
    norms = [np.linalg.norm(x, axis=-1) for x in (turned, Q)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    doubled = rotate(Q, np.full((B, T), 9), frequencies, 2.0)
    np.testing.assert_allclose(doubled, 2 * turned, rtol=1e-6)


def test_rotations_turn_the_halves_as_complex_numbers():
    frequencies, scale = rotary_frequencies(D, 100.0)
    np.testing.assert_allclose(frequencies, [1, 100 ** (-1 / 3), 100 ** (-2 / 3)])
    assert scale == 1.0
    place = np.array([[0, 2, 5], [1, 1, 3]])
    numbers = Q[..., :3] + 1j * Q[..., 3:]
    turned = numbers * np.exp(1j * place[..., None, None] * frequencies)
    expected = np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(rotate(Q, place, frequencies), expected, rtol=1e-4, atol=1e-5)


def test_rotary_frequencies_for_longer_texts():
    plain, _ = rotary_frequencies(64, 1e4)
    kinds = {"none": plain}
    for scaling in ("linear", "llama3", "yarn"):
        kinds[scaling], scale = rotary_frequencies(
            64, 1e4, scaling=scaling, factor=8.0, original_context=256
        )
        # Peng et al. 2023, equation 22: queries and keys each get the root of the temperature.
        expected = 0.1 * np.log(8) + 1 if scaling == "yarn" else 1.0
        np.testing.assert_allclose(scale, expected)
    np.testing.assert_allclose(kinds["linear"], plain / 8)
    turns = 256 * plain / (2 * np.pi)  # in a text of pretraining
    for scaling, slow, fast in (("llama3", 1.0, 4.0), ("yarn", 1.0, 32.0)):
        ratio = kinds[scaling] / plain
        assert ((ratio >= 1 / 8 - 1e-9) & (ratio <= 1 + 1e-9)).all()
        assert (np.diff(ratio) <= 1e-12).all() and len(np.unique(ratio.round(6))) > 4
        # yarn's ramp begins and ends at whole dimensions: one further is sure.
        step = 1e4 ** (2 / 64) if scaling == "yarn" else 1.0
        np.testing.assert_allclose(ratio[turns > fast * step], 1.0)
        np.testing.assert_allclose(ratio[turns < slow / step], 1 / 8)
    # Llama 3.1's rule between the two ends: linear in the turns.
    middle = (turns > 1) & (turns < 4)
    share = (turns[middle] - 1) / 3
    expected = (1 - share) / 8 + share
    np.testing.assert_allclose((kinds["llama3"] / plain)[middle], expected)
    # Any kind with the factor 1 changes nothing.
    for scaling in ("linear", "llama3", "yarn"):
        same, scale = rotary_frequencies(64, 1e4, scaling=scaling, original_context=256)
        np.testing.assert_allclose(same, plain)
        assert scale == 1.0


# Dense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_is_a_matrix_product(dtype):
    """In value, type and gradients, also where the forward pass is made twice."""
    x = jnp.asarray(RNG.normal(size=(2, 3, 5)), dtype)
    kernel = jnp.asarray(RNG.normal(size=(5, 4)), dtype)
    weight = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)

    def loss(product):
        def total(x, kernel):
            return (jnp.sin(product(x, kernel).astype(jnp.float32)) * weight).sum()

        return total

    @jax.jit
    def values(x, kernel):
        forms = (dense, jnp.matmul, jax.checkpoint(dense))
        found = [jax.value_and_grad(loss(form), argnums=(0, 1))(x, kernel) for form in forms]
        return found, dense(x, kernel)

    (ours, plain, again), product = values(x, kernel)
    assert product.dtype == dtype and product.shape == (2, 3, 4)
    chex.assert_trees_all_equal_dtypes(ours, plain)
    rounding = dict(rtol=1e-5, atol=1e-5) if dtype == jnp.float32 else dict(rtol=0.02, atol=0.02)
    chex.assert_trees_all_close(ours, plain, **rounding)
    chex.assert_trees_all_close(ours, again, **rounding)


def test_dense_along_one_axis_and_under_vmap():
    kernels = RNG.normal(size=(3, 5, 4)).astype(np.float32)
    x = RNG.normal(size=(3, 5)).astype(np.float32)
    grads = jax.vmap(jax.grad(lambda x, k: dense(x, k).sum(), argnums=1))(x, kernels)
    np.testing.assert_allclose(grads, np.repeat(x[:, :, None], 4, -1), rtol=1e-6)
