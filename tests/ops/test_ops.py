"""The primitives' forms: each equals Flax's own layer, or its plain form, in value and gradient."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.nn.layers import Conv, Dense, GroupNorm, Norm, Residual, SubPixelConv
from aigc_jax.ops import dispatch
from aigc_jax.ops.activation import gelu, gelu_exact, silu
from aigc_jax.ops.convolution import (
    convolution,
    depth_to_space,
    depthwise,
    downsample,
    downsample_linear,
    grouped_convolution,
    space_to_depth,
    upsample,
    upsample_linear,
)
from aigc_jax.ops.dense import dense
from aigc_jax.ops.norm import layer_norm, rms_norm

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(1.0, 2.0, size=(2, 6, 9, 12)).astype(np.float32)
# Sounds (B, T, C) and videos (B, T, H, W, C), whose sides are even.
SHAPES = {1: (2, 24, 6), 3: (2, 4, 6, 4, 6)}
FAST = {name: forms["cpu"] for name, forms in dispatch.IMPLEMENTATIONS.items() if "cpu" in forms}


def slopes(function, *args):
    """The value, and the gradients of a sum of it with fixed weights, in one program."""

    @jax.jit
    def both(*args):
        y, back = jax.vjp(function, *args)
        weight = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
        return y, back(weight.astype(y.dtype))

    return both(*args)


def check(found, expected, dtype=jnp.float32):
    chex.assert_trees_all_equal_dtypes(found, expected)
    tolerance = 2e-5 if dtype == jnp.float32 else 0.04

    def close(a, b):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())

    jax.tree.map(close, found, expected)


LAYERS = {
    "dense": (Dense(7), nn.Dense(7)),
    "no bias": (Dense(7, use_bias=False), nn.Dense(7, use_bias=False)),
    "layer norm": (Norm("layernorm", 1e-5), nn.LayerNorm(1e-5, use_fast_variance=False)),
    "rms norm": (Norm("rmsnorm", 1e-5), nn.RMSNorm(1e-5)),
    "group norm": (GroupNorm(3, 1e-5), nn.GroupNorm(3, epsilon=1e-5)),
    "norms of channels": (GroupNorm(12, 1e-3), nn.GroupNorm(12, epsilon=1e-3)),
    "3×3": (Conv(5, (3, 3)), nn.Conv(5, (3, 3))),
    "1×1": (Conv(5, (1, 1)), nn.Conv(5, (1, 1))),
    "1×1 of stride 2": (Conv(5, (1, 1), (2, 2)), nn.Conv(5, (1, 1), (2, 2))),
    "5×5 of stride 2": (Conv(5, (5, 5), (2, 2)), nn.Conv(5, (5, 5), (2, 2))),
    "padded": (
        Conv(5, (3, 3), (2, 2), ((0, 1), (0, 1))),
        nn.Conv(5, (3, 3), (2, 2), ((0, 1), (0, 1))),
    ),
    "patches": (Conv(5, (2, 3), (2, 3), "VALID"), nn.Conv(5, (2, 3), (2, 3), "VALID")),
    "cut": (Conv(5, (4, 4), (4, 4), "VALID"), nn.Conv(5, (4, 4), (4, 4), "VALID")),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_layer_is_flax_s(name, dtype):
    """With its parameters' names, shapes and fresh values."""
    ours, theirs = (layer.clone(dtype=dtype) for layer in LAYERS[name])
    x = jnp.asarray(IMAGES, dtype)
    fresh = nn.unbox(ours.init(jax.random.key(0), x))
    chex.assert_trees_all_equal(fresh, theirs.init(jax.random.key(0), x))
    params = jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), fresh)
    found, expected = (
        slopes(lambda p, x: layer.apply(p, x), params, x) for layer in (ours, theirs)
    )
    check(found, expected, dtype)


OTHER_RANKS = {
    "1-D": (Conv(5, (3,)), nn.Conv(5, (3,))),
    "1-D of stride 2": (Conv(5, (4,), (2,)), nn.Conv(5, (4,), (2,))),
    "1-D patches": (Conv(5, (4,), (4,), "VALID"), nn.Conv(5, (4,), (4,), "VALID")),
    "3-D": (Conv(5, (3, 3, 3)), nn.Conv(5, (3, 3, 3))),
    "3-D of stride 2": (Conv(5, (3, 3, 3), (2, 2, 2)), nn.Conv(5, (3, 3, 3), (2, 2, 2))),
    "3-D of stride 2 in space": (Conv(5, (3, 3, 3), (1, 2, 2)), nn.Conv(5, (3, 3, 3), (1, 2, 2))),
    "3-D patches": (Conv(5, (1, 2, 2), (1, 2, 2)), nn.Conv(5, (1, 2, 2), (1, 2, 2))),
}


@pytest.mark.parametrize("name", OTHER_RANKS)
def test_convolutions_of_sounds_and_videos_are_flax_s(name):
    """In value and gradient, by the fast implementations and by the reference."""
    ours, theirs = OTHER_RANKS[name]
    x = jnp.asarray(RNG.normal(size=SHAPES[len(ours.kernel_size)]), jnp.float32)
    params = nn.unbox(ours.init(jax.random.key(0), x))
    chex.assert_trees_all_equal(params, theirs.init(jax.random.key(0), x))
    expected = slopes(lambda p, x: theirs.apply(p, x), params, x)
    for context in (dispatch.override(**FAST), dispatch.all_reference()):
        with context:
            check(slopes(lambda p, x: ours.apply(p, x), params, x), expected)


@pytest.mark.parametrize("rank", SHAPES)
def test_resizing_has_any_number_of_spatial_axes(rank):
    x = jnp.asarray(RNG.normal(size=SHAPES[rank]), jnp.float32)
    deep = space_to_depth(x)
    assert deep.shape == (2, *(n // 2 for n in x.shape[1:-1]), 6 * 2**rank)
    np.testing.assert_array_equal(depth_to_space(deep), x)
    means = deep.reshape(*deep.shape[:-1], 2**rank, 6).mean(-2)
    np.testing.assert_allclose(downsample(x), means, atol=1e-6)
    np.testing.assert_array_equal(downsample(upsample(x)), x)
    last = (*[1] * (rank - 1), 2)
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x, last), last), x)
    assert upsample(x, last).shape == (*x.shape[:-2], 2 * x.shape[-2], 6)
    # Linear interpolation keeps what is linear, but for the edges.
    line = jnp.broadcast_to(jnp.arange(8.0)[:, None], (1, *[8] * rank, 1))
    inside = (slice(None), *[slice(2, -2)] * rank)
    expected = jnp.broadcast_to(jnp.arange(16.0)[:, None] / 2 - 0.25, (1, *[16] * rank, 1))
    np.testing.assert_allclose(upsample_linear(line)[inside], expected[inside], atol=1e-5)
    inside = (slice(None), *[slice(1, -1)] * rank)
    expected = jnp.broadcast_to(jnp.arange(4.0)[:, None] * 2 + 0.5, (1, *[4] * rank, 1))
    np.testing.assert_allclose(downsample_linear(line)[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("rank", SHAPES)
def test_layers_have_any_number_of_spatial_axes(rank):
    x = jnp.asarray(RNG.normal(size=SHAPES[rank]), jnp.float32)
    y, _ = SubPixelConv(4).init_with_output(jax.random.key(0), x)
    assert y.shape == (2, *(2 * n for n in x.shape[1:-1]), 4)
    y, _ = Residual(6).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, x)  # it begins as the identity


PRIMITIVES = {
    "dense": lambda x: dense(x, jnp.sin(jnp.arange(60.0, dtype=x.dtype)).reshape(12, 5)),
    "layer norm": lambda x: layer_norm(x, 1e-5),
    "rms norm": lambda x: rms_norm(x, 1e-5),
    "gelu": gelu,
    "gelu exact": gelu_exact,
    "silu": silu,
    "convolution": lambda x: convolution(x, jnp.ones((3, 3, 12, 6), x.dtype) / 8, (2, 2)),
    "grouped": lambda x: grouped_convolution(x, jnp.ones((3, 3, 4, 6), x.dtype) / 8),
    "grouped in 1-D": lambda x: grouped_convolution(
        x.reshape(2, -1, 12), jnp.ones((3, 4, 6), x.dtype) / 8
    ),
    "depthwise in 3-D": lambda x: depthwise(
        x.reshape(2, 2, 3, 9, 12), jnp.ones((3, 3, 3, 1, 12), x.dtype) / 8, 2
    ),
    "depthwise": lambda x: depthwise(x, jnp.ones((5, 5, 1, 12), x.dtype) / 8, 2),
}


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_forms_are_equal(name, dtype):
    """In value and gradient; backwards, forwards, and the gradient of a gradient."""
    function, x = PRIMITIVES[name], jnp.asarray(IMAGES, dtype)

    def penalty(x):
        grad = jax.grad(lambda x: jnp.sin(function(x)).astype(jnp.float32).sum())(x)
        return jnp.square(grad.astype(jnp.float32)).mean(0)

    def all_slopes():
        forward = jax.jit(lambda x: jax.jvp(function, (x,), (jnp.cos(x),))[1])(x)
        return slopes(function, x), forward, slopes(penalty, x) if dtype == jnp.float32 else ()

    with dispatch.override(**FAST):
        fast = all_slopes()
    with dispatch.all_reference():
        plain = all_slopes()
    check(fast, plain, dtype)


def test_the_table_chooses_by_platform_and_gives_way():
    with dispatch.compiling_for("tpu"):
        assert (
            dispatch.implementation("attention") == "splash"
            and dispatch.implementation("dense") == "reference"
        )
        with dispatch.override(attention="reference"):
            assert dispatch.implementation("attention") == "reference"
    with dispatch.compiling_for("cuda"):
        assert dispatch.implementation("attention") == "cudnn"
    assert dispatch.implementation("attention") == {"cpu": "blockwise"}.get(
        jax.default_backend(), dispatch.implementation("attention")
    )
    with pytest.raises(KeyError, match="atention"), dispatch.override(atention="reference"):
        pass


def test_the_gradient_has_an_optimization_barrier():
    """By a barrier in the backward pass; there is none in the plain form."""
    x, kernel = jnp.ones((2, 3, 3, 4)), jnp.ones((3, 3, 4, 5))

    def barriers(form):
        def total(k):
            return dense(x, k[0, 0]).sum() + convolution(x, k).sum()

        with dispatch.override(dense=form, convolution=form):
            return str(jax.make_jaxpr(jax.grad(total))(kernel)).count("optimization_barrier")

    assert barriers("optimization_barrier") == 2 and barriers("reference") == 0


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (0, 1)), ((1, 2), (3, 0))], ids=str)
@pytest.mark.parametrize("kernel, r", [((1, 3), 2), ((2, 4), 2), ((3, 5), 2), ((5, 4), 3)], ids=str)
def test_strided_convolutions_are_those_of_squares(kernel, r, padding):
    """Value, gradients, and the gradient of a penalty of the slope."""
    x = jnp.asarray(RNG.normal(size=(2, 6, 12, 3)), jnp.float32)
    k = jnp.asarray(RNG.normal(size=(*kernel, 3, 2)), jnp.float32)

    def forms():
        def run(x, k):
            return convolution(x, k, (r, r), padding)

        def penalty(x, k):
            return (jax.grad(lambda x: jnp.sin(run(x, k)).sum())(x) ** 2).sum()

        return slopes(run, x, k), jax.grad(penalty, argnums=(0, 1))(x, k)

    with dispatch.override(**FAST):
        fast = forms()
    with dispatch.all_reference():
        plain = forms()
    check(fast, plain)
