"""Convolutions and resampling with any number of spatial axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gradients import FAST, check, slopes

from aigc_jax.ops import dispatch
from aigc_jax.ops.convolution import (
    convolution,
    depth_to_space,
    downsample,
    downsample_linear,
    space_to_depth,
    upsample,
    upsample_linear,
)

RNG = np.random.default_rng(0)
# Sounds (B, T, C) and videos (B, T, H, W, C), whose sides are even.
SHAPES = {1: (2, 24, 6), 3: (2, 4, 6, 4, 6)}


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


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (0, 1)), ((1, 2), (3, 0))], ids=str)
@pytest.mark.parametrize("kernel, r", [((1, 3), 2), ((2, 4), 2), ((3, 5), 2), ((5, 4), 3)], ids=str)
def test_strided_convolutions_are_those_of_squares(kernel, r, padding):
    """In value and gradients; for one padding, in the gradient of a gradient penalty, too."""
    x = jnp.asarray(RNG.normal(size=(2, 6, 12, 3)), jnp.float32)
    k = jnp.asarray(RNG.normal(size=(*kernel, 3, 2)), jnp.float32)

    def forms():
        def run(x, k):
            return convolution(x, k, (r, r), padding)

        def penalty(x, k):
            return (jax.grad(lambda x: jnp.sin(run(x, k)).sum())(x) ** 2).sum()

        if padding != "SAME":
            return slopes(run, x, k)
        return slopes(run, x, k), slopes(penalty, x, k)

    with dispatch.override(**FAST):
        fast = forms()
    with dispatch.all_reference():
        plain = forms()
    check(fast, plain)
