"""A matrix product along the last axis.

Shapes: M inputs, N outputs.
"""

import jax

from aigc_jax.distributed import logical_axes
from aigc_jax.ops import dispatch


def dense(x_M: jax.Array, kernel_MN: jax.Array) -> jax.Array:
    """Returns x @ kernel, (…, M) → (…, N).

    With "optimization_barrier" all rows are one matrix and the gradient is computed once. XLA's CPU
    compiler transposes the operands of a kernel's gradient if it sums over several axes, and fuses
    (hence recomputes) their producers into it: more than half of a step's time.
    """
    if dispatch.implementation("dense") == "reference":
        return x_M @ kernel_MN
    if logical_axes.num_shards("length") > 1:  # flattened rows could not be sharded by two axes
        return single_use_grad(x_M @ kernel_MN)
    y_N = single_use_grad(x_M.reshape(-1, x_M.shape[-1]) @ kernel_MN)
    return y_N.reshape(*x_M.shape[:-1], -1)


@jax.custom_jvp
def single_use_grad(x: jax.Array) -> jax.Array:
    """Returns x; its gradient is computed once instead of being fused into each consumer."""
    return x


@single_use_grad.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The barrier is its own transpose, so the backward pass has it too.
    return primals[0], jax.lax.optimization_barrier(tangents[0])
