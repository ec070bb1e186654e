"""A matrix product along the last axis.

Shapes: M inputs, N outputs.
"""

import jax

from aigc_jax.ops import platform


def dense(x_M: jax.Array, kernel_MN: jax.Array) -> jax.Array:
    """x @ kernel, (…, M) → (…, N).

    Guarded: without it XLA's CPU compiler computes the chain of operations behind the gradient once
    more, in transposed order, for the kernel's gradient: a third of a train step's time.
    """
    y_N = x_M @ kernel_MN
    return guarded(y_N) if platform.form("dense") == "guarded" else y_N


@jax.custom_jvp
def guarded(x: jax.Array) -> jax.Array:
    """x itself, whose gradient is computed once, whoever reads it: it is fused into no reader."""
    return x


@guarded.defjvp
def _(primals, tangents):
    # The barrier is its own transpose, so it stands in the backward pass too.
    return primals[0], jax.lax.optimization_barrier(tangents[0])
