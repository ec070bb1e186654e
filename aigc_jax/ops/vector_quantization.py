"""Vector quantisation as pure functions: FSQ, nearest code, k-means.

Shapes: N vectors, Z their size, K codes, M slots of a pool.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

SHRINK = 1e-3  # keeps the limits of tanh inside the outermost levels
FLOOR, STEEPNESS = 2.0**-14, 8  # of `reservoir`: weights are at most 2¹¹², within float32


def straight_through(z: jax.Array, q: jax.Array) -> jax.Array:
    """Returns the value of `q` with the gradient of `z` (Bengio et al. 2013)."""
    return z + jax.lax.stop_gradient(q - z)


# Finite scalar quantisation (Mentzer et al. 2023) ----------------------------------------------


def fsq(z: jax.Array, levels: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Rounds each component to one of its few levels; needs no codebook.

    Args:
      z: (…, Z) of any size.
      levels: number of levels L of each of the Z components.

    Returns:
      The levels (…, Z) from about −1 to 1, with straight-through gradient, and their codes (…) in
      0…ΠL − 1.
    """
    bounded = fsq_bound(z, levels)
    rounded = straight_through(bounded, jnp.round(bounded))
    half = jnp.asarray([count // 2 for count in levels], jnp.float32)
    place = jax.lax.stop_gradient(rounded + half).astype(jnp.int32)
    return rounded / half, (place * _basis(levels)).sum(-1)


def fsq_bound(z: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Bounds z so that rounding gives exactly L integers, and 0 maps to 0.

    This is tanh · (L − 1)/2; for an even L the levels are −L/2 … L/2 − 1, so it is shifted by −½,
    and its argument so that 0 stays 0 (equation 3 of the paper, and the offset in its code).
    """
    width = (np.asarray(levels, np.float64) - 1) * (1 - SHRINK) / 2
    offset = np.where(np.asarray(levels) % 2 == 0, 0.5, 0.0)
    # With two levels the shift of ½ would be beyond the range of tanh, and nothing rounded up.
    width = np.maximum(width, offset + SHRINK)
    shift = np.arctanh(offset / width)
    width_Z, offset_Z, shift_Z = (jnp.asarray(x, jnp.float32) for x in (width, offset, shift))
    return jnp.tanh(z + shift_Z) * width_Z - offset_Z


def fsq_decode(code: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Inverse of `fsq`: converts codes (…) to levels (…, Z)."""
    place = code[..., None] // _basis(levels) % jnp.asarray(levels)
    half = jnp.asarray([count // 2 for count in levels])
    return ((place - half) / half).astype(jnp.float32)


def _basis(levels: tuple[int, ...]) -> jax.Array:
    return jnp.asarray([math.prod(levels[:i]) for i in range(len(levels))], jnp.int32)


# A codebook -----------------------------------------------------------------------------------


def l2_normalize(x: jax.Array) -> jax.Array:
    """Normalises vectors to length 1; the zero vector is unchanged and has a finite gradient."""
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


def nearest_code(z_NZ: jax.Array, codebook_KZ: jax.Array) -> jax.Array:
    """Returns the index of the nearest code of each vector; the first of equals."""
    return ((codebook_KZ**2).sum(-1) - 2 * z_NZ @ codebook_KZ.T).argmin(-1).astype(jnp.int32)


def segment_sums(
    z_NZ: jax.Array, code_N: jax.Array, weight_N: jax.Array, codes: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the total weight of each code's vectors (K,) and their weighted sum (K, Z)."""
    # Vectors of weight 0 may be infinite or NaN.
    part_NZ = jnp.where(weight_N[:, None] != 0, z_NZ * weight_N[:, None], 0)
    count_K = jax.ops.segment_sum(weight_N, code_N, codes)
    return count_K, jax.ops.segment_sum(part_NZ, code_N, codes)


def kmeans(
    z_NZ: jax.Array, weight_N: jax.Array, codes: int, rounds: int, spherical: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Runs Lloyd's algorithm, initialised with the first vectors of positive weight.

    If there are fewer vectors than codes, the other codes are copies without members.

    Args:
      z_NZ, weight_N: vectors in random order and their weights.
      codes: K.
      rounds: number of iterations.
      spherical: whether vectors and codes have length 1.

    Returns:
      The codes (K, Z), and the total weight of the members of each (K,).
    """
    order_N = jnp.argsort(weight_N <= 0, stable=True)  # positive weights first
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
    """Samples vectors into slots, as ratios of two sums that can be added over shards.

    Each vector gets a random slot and a heavy-tailed random weight, so that the weighted mean of a
    slot, `sums / weights`, is close to its heaviest vector: a random one. Being sums, the results
    of microbatches and devices add up to that of the global batch.

    Args:
      z_NZ, weight_N: vectors and weights; vectors of weight 0 are ignored.
      draw_N2: two uniform random numbers for each vector.
      slots: M.

    Returns:
      The sums (M, Z) and the weights (M,), 0 in an empty slot.
    """
    slot_N = jnp.minimum((draw_N2[:, 0] * slots).astype(jnp.int32), slots - 1)
    heavy_N = jnp.maximum(1 - draw_N2[:, 1], FLOOR) ** -STEEPNESS
    weight_M, sum_MZ = segment_sums(z_NZ, slot_N, jnp.where(weight_N > 0, heavy_N, 0), slots)
    return sum_MZ, weight_M
