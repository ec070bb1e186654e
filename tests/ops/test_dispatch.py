"""Implementations per platform: equal to the reference, and chosen by a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gradients import FAST, check, slopes

from aigc_jax.ops import dispatch
from aigc_jax.ops.activation import gelu, gelu_exact, silu
from aigc_jax.ops.convolution import (
    convolution,
    depthwise,
    grouped_convolution,
)
from aigc_jax.ops.dense import dense
from aigc_jax.ops.norm import layer_norm, rms_norm

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(1.0, 2.0, size=(2, 6, 9, 12)).astype(np.float32)


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


@pytest.mark.xla_optimizations
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
