"""Fingerprints of arrays: the same on every topology, different if one bit differs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
GOLDEN = np.uint32(0x9E3779B1)  # 2³² divided by the golden ratio, rounded to an odd number


def fingerprints(tree: Any) -> list[int]:
    """A 32-bit number for each array of `tree`, in the order of its leaves.

    Computed on the devices where the arrays lie, as a sum of the elements' bits times odd weights
    that depend on their index, modulo 2³². Sums of integers do not depend on their order, so the
    number does not depend on how an array is spread over devices. A change of one element always
    changes it, because an odd weight is invertible; larger changes escape with probability 2⁻³².
    """
    return [int(n) for n in np.asarray(_fingerprints(jax.tree.leaves(tree)))]


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_fingerprint(x) for x in leaves])


def _fingerprint(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize])
    if x.dtype.itemsize == 8:
        bits = bits ^ (bits >> 32)
    # The index in the flattened array, without flattening: a reshape would move sharded arrays.
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    weights = (index * GOLDEN) ^ (index >> 15) | 1
    return (bits.astype(jnp.uint32) * weights).sum(dtype=jnp.uint32)
