"""Values and gradients of implementations of one function, compared."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.ops import dispatch

# The implementations of a CPU, on whatever platform the tests run.
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
