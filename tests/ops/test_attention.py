"""Attention, who sees whom, rotary positions and the dense product, each against plain sums."""

import dataclasses
import re

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.distributed import logical_axes
from aigc_jax.distributed.mesh import make_mesh, replicated
from aigc_jax.ops import attention_blocks, dispatch
from aigc_jax.ops.attention import attention
from aigc_jax.ops.attention_implementations import cudnn_attention, splash_attention
from aigc_jax.ops.attention_mask import AttentionMask, make_mask, segment_positions
from aigc_jax.ops.dense import dense
from aigc_jax.ops.rope import rotary_frequencies, rotate

B, T, S, H, K, D = 2, 3, 5, 4, 2, 6
RNG = np.random.default_rng(0)
Q = RNG.normal(size=(B, T, H, D)).astype(np.float32)
KEYS, VALUES = RNG.normal(size=(2, B, S, K, D)).astype(np.float32)
# The last query of the second row sees nothing, and some keys are padding.
CAUSAL = AttentionMask(
    np.array([[2, 3, 4], [7, 5, 0]]), np.array([[0, 1, 2, 3, -1], [7, 6, -1, 5, 4]])
)
MASK = np.asarray(CAUSAL.dense())


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
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "some"])
def test_attention_is_its_formula(mask, options):
    found = attention(Q, KEYS, VALUES, None if mask is None else CAUSAL, **options)
    seen = np.ones((B, T), bool) if mask is None else mask.any(-1)
    np.testing.assert_allclose(found[seen], plain(mask, **options)[seen], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found).all()


def test_positions_of_one_row_broadcast():
    rows = [AttentionMask(CAUSAL.query_BT[at], CAUSAL.key_BS[at]) for at in ([0], [0, 0])]
    chex.assert_trees_all_equal(*(attention(Q, KEYS, VALUES, mask) for mask in rows))


@pytest.mark.parametrize("form", ["reference", "blockwise"])
def test_a_query_that_sees_nothing_has_finite_gradients(form):
    with dispatch.override(attention=form):
        grads = jax.jit(jax.grad(lambda *a: attention(*a, CAUSAL).sum(), argnums=(0, 1, 2)))
        grads = grads(Q, KEYS, VALUES)
    chex.assert_tree_all_finite(grads)


def test_bfloat16_is_softmaxed_in_float32():
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (Q, KEYS, VALUES)]
    with dispatch.override(attention="reference"):
        traced = jax.make_jaxpr(attention)(*halves, CAUSAL)
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


# Forms ---------------------------------------------------------------------------------------

LONG = 150  # two blocks and a part of one
COUNT = np.arange(LONG)[None]
DOCUMENTS = np.repeat([[1, 2, 3, 0], [4, 4, 5, 5]], [40, 50, 35, 25], axis=1)
CONTIGUOUS = AttentionMask(COUNT, COUNT, contiguous=True)
PACKED = dict(segments=(DOCUMENTS, DOCUMENTS), contiguous=True)
PLACES_IN = np.asarray(segment_positions(jnp.asarray(DOCUMENTS)))
MASKS = {
    "all": None,
    "causal": CONTIGUOUS,
    "window": dataclasses.replace(CONTIGUOUS, window=70),
    "traced": dataclasses.replace(CONTIGUOUS, dynamic_window=jnp.int32(20)),
    "both ways": dataclasses.replace(CONTIGUOUS, window=9, causal=False),
    "documents": AttentionMask(PLACES_IN, PLACES_IN, **PACKED),
    "encoder": AttentionMask(PLACES_IN, PLACES_IN, causal=False, **PACKED),
    "cache": AttentionMask(COUNT[:, :30] + 60, np.where(COUNT < 90, COUNT, -1)),
    "shuffled": AttentionMask(COUNT[:, ::-1], COUNT),
}


# How the blocks are made otherwise: one example after the other, and of large heads.
IN_TURN, LARGE = dict(FORWARD=1 << 17, BACKWARD=1 << 10), dict(SMALL_HEAD=0)


@pytest.mark.xla_optimizations
@pytest.mark.parametrize(
    "name, dtype, blocks",
    [
        *((name, jnp.float32, {}) for name in MASKS),
        ("documents", jnp.bfloat16, {}),
        *((name, jnp.float32, IN_TURN) for name in ("all", "traced", "documents", "encoder")),
        *((name, jnp.float32, LARGE) for name in ("all", "documents")),
    ],
)
def test_by_blocks_it_is_the_plain_form(name, dtype, blocks, monkeypatch):
    """In value and gradient, of grouped heads, where a query sees something."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for constant, value in blocks.items():
        monkeypatch.setattr(attention_blocks, constant, value)
    mask = MASKS[name]
    t = LONG if mask is None else mask.query_BT.shape[1]
    q, weight = (jnp.asarray(RNG.normal(size=(B, t, 4, 6)), dtype) for _ in range(2))
    k, v = (jnp.asarray(RNG.normal(size=(B, LONG, 2, 6)), dtype) for _ in range(2))
    if mask is not None:
        weight *= mask.dense().any(-1)[:, :, None, None].astype(dtype)

    def both(form):
        @jax.jit
        def run(q, k, v):
            y, back = jax.vjp(lambda *x: attention(*x, mask, scale=0.5), q, k, v)
            return y * weight, back(weight)

        with dispatch.override(attention=form):
            return run(q, k, v)

    tolerance = 2e-5 if dtype == jnp.float32 else 0.05
    found, expected = both("blockwise"), both("reference")
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def test_no_block_has_all_logits_and_the_future_costs_nothing(monkeypatch):
    monkeypatch.setattr(attention_blocks, "FORWARD", 1 << 15)
    monkeypatch.setattr(attention_blocks, "BACKWARD", 1 << 15)
    shape = jax.ShapeDtypeStruct((1, 512, 1, 8), jnp.float32)
    place = np.arange(512)[None]

    def sizes(**kw):
        def loss(q, k, v):
            return attention(q, k, v, AttentionMask(place, place, contiguous=True, **kw)).sum()

        with dispatch.override(attention="blockwise"):
            text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).as_text()
        return {int(n) for n in re.findall(r"tensor<1x1x1x64x(\d+)xf32>", text)} - {8, 1}

    assert sizes() == {64 * n for n in range(1, 9)}
    assert max(sizes(window=64)) == 127
    assert sizes(causal=False) == {512}


def test_as_many_examples_at_once_as_their_logits_allow(monkeypatch):
    """And all of them where a batch may be split among devices, which a loop over it is not."""
    q = jax.ShapeDtypeStruct((12, 256, 16, 8), jnp.float32)

    def at_once():
        def loss(q):
            return attention(q, q, q).sum()

        with dispatch.override(attention="blockwise"):
            text = jax.jit(jax.grad(loss)).lower(q).as_text()
        return {int(n) for n in re.findall(r"tensor<(\d+)x16x1x\d+x256xf32>", text)}

    assert at_once() == {12}
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert at_once() == {1}
    monkeypatch.setattr(attention_blocks, "BACKWARD", 6 << 20)
    assert at_once() == {1, 6}


def test_cudnn_falls_back_to_the_reference():
    """Without a GPU it is what JAX itself refuses; the description is checked before."""
    halves = [jnp.zeros((2, 6, 4, 8), jnp.bfloat16)] * 3
    assert cudnn_attention(*halves, None, 1.0) is None
    asked = []

    def library(*args, **kw):
        asked.append({k: v if isinstance(v, (bool, tuple, type(None))) else v.shape
                      for k, v in kw.items() if k not in ("scale", "implementation")})  # fmt: skip
        return args[0]

    place = np.arange(6)[None]
    contiguous = AttentionMask(place, place, contiguous=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", library)
        cudnn_attention(*halves, None, 1.0)
        cudnn_attention(*halves, contiguous, 1.0)
        cudnn_attention(*halves, dataclasses.replace(contiguous, window=3), 1.0)
        cudnn_attention(*halves, dataclasses.replace(contiguous, causal=False), 1.0)
        cudnn_attention(*halves, dataclasses.replace(contiguous, dynamic_window=jnp.int32(3)), 1.0)
        cudnn_attention(*halves, AttentionMask(place, place), 1.0)
        assert cudnn_attention(*(x.astype(jnp.float32) for x in halves), None, 1.0) is None
        assert cudnn_attention(*(x[:, :5] for x in halves), None, 1.0) is None
        patch.setattr(logical_axes, "num_shards", lambda axis: 1 + (axis == "length"))
        assert cudnn_attention(*halves, None, 1.0) is None  # queries would be split, keys not
    causal = dict(is_causal=True, local_window_size=None)
    mask = dict(mask=(2, 1, 6, 6))
    windowed = dict(is_causal=True, local_window_size=(2, 0))
    assert asked == [{}, causal, windowed, {}, mask, mask]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "causal", "window", "documents"])
def test_the_kernel_of_a_tpu_is_the_plain_form(name):
    """Interpreted: its value; and that it lowers for a TPU with its gradient."""
    t, place = 128, np.arange(128)[None]
    documents = np.repeat([[1, 2], [3, 4]], [50, 78], axis=1)
    mask = {
        "all": None,
        "causal": AttentionMask(place, place, contiguous=True),
        "window": AttentionMask(place, place, window=30, contiguous=True),
        "documents": AttentionMask(
            *[np.asarray(segment_positions(jnp.asarray(documents)))] * 2,
            segments=(jnp.asarray(documents), jnp.asarray(documents)),
            contiguous=True,
        ),
    }[name]
    q = jnp.asarray(RNG.normal(size=(2, t, 4, 64)), jnp.float32)
    k, v = (jnp.asarray(RNG.normal(size=(2, t, 2, 64)), jnp.float32) for _ in range(2))
    found = splash_attention(q, k, v, mask, 0.2, interpret=True)
    with dispatch.override(attention="reference"):
        expected = attention(q, k, v, mask, scale=0.2)
    np.testing.assert_allclose(found, expected, atol=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        loss = jax.grad(
            lambda q, k, v: splash_attention(q, k, v, mask, 0.2).sum(), argnums=(0, 1, 2)
        )
        text = jax.export.export(jax.jit(loss), platforms=["tpu"])(q, k, v).mlir_module()
    assert "tpu_custom_call" in text


@pytest.mark.slow
def test_each_device_runs_the_kernel_of_a_tpu_on_its_rows_and_heads():
    documents = np.repeat([[1, 2], [3, 4]], 64, axis=1)
    place = np.tile(np.arange(64), (2, 2))
    q = jnp.asarray(RNG.normal(size=(2, 128, 4, 64)), jnp.float32)
    k, v = (jnp.asarray(RNG.normal(size=(2, 128, 2, 64)), jnp.float32) for _ in range(2))
    segments = jnp.asarray(documents), jnp.asarray(documents)
    mask = AttentionMask(place, place, segments=segments, contiguous=True)

    def found(text):
        mesh = make_mesh(text)
        attend = logical_axes.with_mesh(
            mesh, lambda *a: splash_attention(*a, mask, 0.2, interpret=True)
        )
        return jax.jit(attend)(*jax.device_put((q, k, v), replicated(mesh)))

    np.testing.assert_allclose(found("data=2,tensor=2"), found("data=1"), atol=1e-6)
    with jax.sharding.use_abstract_mesh(make_mesh("sequence=2").abstract_mesh):
        assert splash_attention(q, k, v, mask, 0.2) is None
    with jax.sharding.use_abstract_mesh(make_mesh("tensor=4").abstract_mesh):
        assert splash_attention(q, k, v, mask, 0.2) is None


def test_splash_falls_back_to_the_reference():
    q = jnp.zeros((1, 128, 2, 64))
    place = np.arange(128)[None]
    assert splash_attention(q, q, q, AttentionMask(place, place), 1.0) is None  # any order
    assert splash_attention(q[:, :100], q, q, None, 1.0) is None
    assert splash_attention(q[..., :40], q[..., :40], q, None, 1.0) is None


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
    found = make_mask(place, place, causal=causal, window=window)
    np.testing.assert_array_equal(found[0], expected)
    traced = make_mask(place, place, causal=causal, window=jnp.int32(window))
    np.testing.assert_array_equal(traced[0], expected)
    if window == 3:  # itself included
        assert found[0, 4].sum() == (3 if causal else 4)  # …2, 3, 4; 5 too, but 6 is padding


def test_documents_do_not_see_each_other():
    segments = np.array([1, 1, 1, 2, 2, 2, 0])
    place = np.array([0, 1, 2, 0, 1, 2, -1])
    found = make_mask(place[None], place[None], (segments[None], segments[None]))
    np.testing.assert_array_equal(found[0], by_hand(place, place, documents=(segments, segments)))
    assert not found[0, 3, :3].any() and not found[0, 3:6, :3].any() and not found[0, :, 6].any()


def test_positions_count_within_documents():
    segments = np.array([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 0, 3, 3, 1, 2, 0]])
    expected = [[0, 1, 0, 1, 2, -1, -1], [0, 1, 2, 3, 4, 5, 6], [-1, -1, 0, 1, 0, 0, -1]]
    np.testing.assert_array_equal(segment_positions(jnp.asarray(segments)), expected)


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
