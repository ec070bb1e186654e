"""Vector quantisation as pure functions: finite scalar, nearest code, k-means.

Shapes: N vectors, Z their size, K codes, M slots of a reservoir.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

SHRINK = 1e-3  # keeps tanh's limits inside the outermost levels
FLOOR, STEEPNESS = 2.0**-14, 8  # of `reservoir`: the largest weight, 2¹¹², fits float32


def straight_through(z: jax.Array, q: jax.Array) -> jax.Array:
    """Returns q with the gradient of z (Bengio et al. 2013)."""
    return z + jax.lax.stop_gradient(q - z)


# Finite scalar quantisation (Mentzer et al. 2023) ----------------------------------------------


def fsq(z: jax.Array, levels: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Rounds each number to one of a few levels; there is no codebook to learn.

    Args:
      z: (…, Z) of any size.
      levels: number of levels L of each of the Z numbers.

    Returns:
      The quantised vectors (…, Z) between about −1 and 1, with straight-through gradients, and
      their codes (…), 0…ΠL − 1.
    """
    bounded = fsq_bound(z, levels)
    rounded = straight_through(bounded, jnp.round(bounded))
    half = jnp.asarray([count // 2 for count in levels], jnp.float32)
    digits = jax.lax.stop_gradient(rounded + half).astype(jnp.int32)
    return rounded / half, (digits * _basis(levels)).sum(-1)


def fsq_bound(z: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Bounds z so that rounding gives exactly L integers, and 0 stays 0.

    tanh · (L − 1)/2; for an even L the levels are −L/2 … L/2 − 1, so a half is subtracted and the
    argument shifted to compensate at 0 (equation 3 of the paper and the offset of its code).
    """
    width = (np.asarray(levels, np.float64) - 1) * (1 - SHRINK) / 2
    offset = np.where(np.asarray(levels) % 2 == 0, 0.5, 0.0)
    # With two levels the half would exceed tanh's range, and nothing would be rounded up.
    width = np.maximum(width, offset + SHRINK)
    shift = np.arctanh(offset / width)
    scale, half, at_zero = (jnp.asarray(x, jnp.float32) for x in (width, offset, shift))
    return jnp.tanh(z + at_zero) * scale - half


def fsq_decode(code: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Returns the quantised vectors (…, Z) of codes (…); the inverse of `fsq`."""
    digits = code[..., None] // _basis(levels) % jnp.asarray(levels)
    half = jnp.asarray([count // 2 for count in levels])
    return ((digits - half) / half).astype(jnp.float32)


def _basis(levels: tuple[int, ...]) -> jax.Array:
    return jnp.asarray([math.prod(levels[:i]) for i in range(len(levels))], jnp.int32)


# A codebook -----------------------------------------------------------------------------------


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scales vectors to length 1; the zero vector stays zero and has a finite gradient."""
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


def nearest_code(z_NZ: jax.Array, codebook_KZ: jax.Array) -> jax.Array:
    """Returns the index of the nearest code of each vector (N,); the first of equals."""
    return ((codebook_KZ**2).sum(-1) - 2 * z_NZ @ codebook_KZ.T).argmin(-1).astype(jnp.int32)


def segment_sums(z_NZ: jax.Array, code_N: jax.Array, weight_N: jax.Array, codes: int):
    """Returns the total weight of the vectors of each code (K,) and their weighted sum (K, Z)."""
    # A vector of weight 0 may be infinite.
    part_NZ = jnp.where(weight_N[:, None] != 0, z_NZ * weight_N[:, None], 0)
    count_K = jax.ops.segment_sum(weight_N, code_N, codes)
    return count_K, jax.ops.segment_sum(part_NZ, code_N, codes)


def kmeans(
    z_NZ: jax.Array, weight_N: jax.Array, codes: int, rounds: int, spherical: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Runs Lloyd's algorithm from the first vectors of positive weight.

    If there are fewer vectors than codes, the other codes are duplicates without members.

    Args:
      z_NZ, weight_N: the vectors in random order and their weights.
      codes: K.
      rounds: number of iterations.
      spherical: whether vectors and codes have length 1.

    Returns:
      The codes (K, Z) and the total weight of the members of each (K,).
    """
    order_N = jnp.argsort(weight_N <= 0, stable=True)  # those with weight first
    real = jnp.maximum((weight_N > 0).sum(), 1)
    first_K = order_N[jnp.arange(codes) % jnp.minimum(real, len(z_NZ))]

    def move(_, codebook_KZ):
        count_K, sum_KZ = segment_sums(z_NZ, nearest_code(z_NZ, codebook_KZ), weight_N, codes)
        mean_KZ = sum_KZ / jnp.where(count_K > 0, count_K, 1)[:, None]
        mean_KZ = l2_normalize(mean_KZ) if spherical else mean_KZ
        return jnp.where(count_K[:, None] > 0, mean_KZ, codebook_KZ)

    codebook_KZ = jax.lax.fori_loop(0, rounds, move, z_NZ[first_K])
    count_K, _ = segment_sums(z_NZ, nearest_code(z_NZ, codebook_KZ), weight_N, codes)
    return codebook_KZ, count_K


def reservoir(
    z_NZ: jax.Array, weight_N: jax.Array, draw_N2: jax.Array, slots: int
) -> tuple[jax.Array, jax.Array]:
    """Draws M random vectors as ratios of two sums, which add up over microbatches and devices.

    Each vector is assigned to a random slot with a random heavy-tailed weight, so that the largest
    weight of a slot dominates its weighted mean: `sums / weights` is about one vector drawn at
    random. Being sums, the reservoirs of microbatches and devices add up to that of the batch.

    Args:
      z_NZ, weight_N: the vectors; those of weight 0 are left out.
      draw_N2: two uniform random numbers for each vector.
      slots: M.

    Returns:
      The sums (M, Z) and the weights (M,), 0 for an empty slot.
    """
    slot_N = jnp.minimum((draw_N2[:, 0] * slots).astype(jnp.int32), slots - 1)
    heavy_N = jnp.maximum(1 - draw_N2[:, 1], FLOOR) ** -STEEPNESS
    weight_M, sum_MZ = segment_sums(z_NZ, slot_N, jnp.where(weight_N > 0, heavy_N, 0), slots)
    return sum_MZ, weight_M
