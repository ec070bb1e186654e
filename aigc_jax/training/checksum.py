"""Checksums of arrays that do not depend on the topology."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
GOLDEN = np.uint32(0x9E3779B1)  # 2³² divided by the golden ratio, rounded to an odd number


def checksums(tree: Any) -> list[int]:
    """Returns a 32-bit checksum for each array of `tree`, in the order of its leaves.

    Computed on the devices that hold the arrays: each element's bits are mixed with its index, and
    the results are added modulo 2³². Sums of integers do not depend on their order, hence the
    checksum does not depend on the sharding. Mixing is one-to-one for a given index, so a change of
    one element always changes the sum; larger changes go undetected with probability 2⁻³².
    """
    return [int(n) for n in np.asarray(_checksums(jax.tree.leaves(tree)))]


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_checksum(x) for x in leaves])


def _checksum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    # (Eight bytes become two elements of four.)
    bits = jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    # The index in the flattened array, without flattening: a reshape would move sharded arrays.
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = np.uint32(math.prod(bits.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
    return _mix(bits ^ _mix(index * GOLDEN + GOLDEN)).sum(dtype=jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: each bit of the result depends on all bits of `h`."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
