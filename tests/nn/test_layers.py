"""Layers against Flax's own, in value and gradient."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gradients import FAST, check, slopes

from aigc_jax.nn.layers import Conv, Dense, GroupNorm, Norm, Residual, SubPixelConv
from aigc_jax.ops import dispatch

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(1.0, 2.0, size=(2, 6, 9, 12)).astype(np.float32)
# Sounds (B, T, C) and videos (B, T, H, W, C), whose sides are even.
SHAPES = {1: (2, 24, 6), 3: (2, 4, 6, 4, 6)}


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
    fresh, expected = (jax.jit(layer.init)(jax.random.key(0), x) for layer in (ours, theirs))
    fresh = nn.unbox(fresh)
    chex.assert_trees_all_equal(fresh, expected)
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
    params, fresh = (jax.jit(layer.init)(jax.random.key(0), x) for layer in (ours, theirs))
    params = nn.unbox(params)
    chex.assert_trees_all_equal(params, fresh)
    expected = slopes(lambda p, x: theirs.apply(p, x), params, x)
    for context in (dispatch.override(**FAST), dispatch.all_reference()):
        with context:
            check(slopes(lambda p, x: ours.apply(p, x), params, x), expected)


@pytest.mark.parametrize("rank", SHAPES)
def test_layers_have_any_number_of_spatial_axes(rank):
    x = jnp.asarray(RNG.normal(size=SHAPES[rank]), jnp.float32)
    y, _ = SubPixelConv(4).init_with_output(jax.random.key(0), x)
    assert y.shape == (2, *(2 * n for n in x.shape[1:-1]), 4)
    y, _ = Residual(6).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, x)  # it begins as the identity
