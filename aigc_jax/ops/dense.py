"""A matrix product along the last axis.

Shapes: M inputs, N outputs.
"""

import jax

from aigc_jax.distributed import logical_axes
from aigc_jax.ops import dispatch


def dense(x_M: jax.Array, kernel_MN: jax.Array) -> jax.Array:
    """x @ kernel, (…, M) → (…, N).

    Guarded: all rows as one matrix, and a gradient that is computed once. XLA's CPU compiler
    transposes what a kernel's gradient sums over several axes, and computes the chain of operations
    behind the gradient once more on the way: that would be more than half of a train step's time.
    """
    if dispatch.implementation("dense") == "reference":
        return x_M @ kernel_MN
    if (
        logical_axes.num_shards("length") > 1
    ):  # one axis of rows could not be split as the texts are
        return guarded(x_M @ kernel_MN)
    y_N = guarded(x_M.reshape(-1, x_M.shape[-1]) @ kernel_MN)
    return y_N.reshape(*x_M.shape[:-1], -1)


@jax.custom_jvp
def guarded(x: jax.Array) -> jax.Array:
    """x itself, whose gradient is computed once, whoever reads it: it is fused into no reader."""
    return x


@guarded.defjvp
def _(primals, tangents):
    # The barrier is its own transpose, so it stands in the backward pass too.
    return primals[0], jax.lax.optimization_barrier(tangents[0])
