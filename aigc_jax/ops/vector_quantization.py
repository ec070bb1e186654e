"""Quantisation of vectors, as pure functions: finite scalar, nearest code, k-means.

Shapes: N vectors, Z their size, K codes, M slots of a pool.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

SHRINK = 1e-3  # keeps tanh's limits inside the outermost levels
FLOOR, STEEPNESS = 2.0**-14, 8  # of `pool`: 2¹¹² is the heaviest weight, which float32 can hold


def straight_through(z: jax.Array, q: jax.Array) -> jax.Array:
    """The value of `q` with the gradient of `z` (Bengio et al. 2013)."""
    return z + jax.lax.stop_gradient(q - z)


# Finite scalar quantisation (Mentzer et al. 2023) ----------------------------------------------


def fsq(z: jax.Array, levels: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Each number rounded to one of its own few levels; there is no codebook to learn.

    Args:
      z: (…, Z) of any size.
      levels: L of each of the Z numbers.

    Returns:
      The levels (…, Z) from about −1 to 1, straight through, and their code (…) of 0…ΠL − 1.
    """
    bounded = fsq_bound(z, levels)
    rounded = straight_through(bounded, jnp.round(bounded))
    half = jnp.asarray([count // 2 for count in levels], jnp.float32)
    place = jax.lax.stop_gradient(rounded + half).astype(jnp.int32)
    return rounded / half, (place * _basis(levels)).sum(-1)


def fsq_bound(z: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """z squeezed so that rounding gives exactly L whole numbers, and 0 stays 0.

    tanh · (L − 1)/2; for an even L the levels are −L/2 … L/2 − 1, so it is lowered by a half and
    its argument moved to make up for it at 0 (equation 3 of the paper and its code's offset).
    """
    width = (np.asarray(levels, np.float64) - 1) * (1 - SHRINK) / 2
    offset = np.where(np.asarray(levels) % 2 == 0, 0.5, 0.0)
    # With two levels the half would be beyond tanh's reach, and nothing rounded up.
    width = np.maximum(width, offset + SHRINK)
    shift = np.arctanh(offset / width)
    width, offset, shift = (jnp.asarray(x, jnp.float32) for x in (width, offset, shift))
    return jnp.tanh(z + shift) * width - offset


def fsq_decode(code: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """The inverse of `fsq`: codes (…) as levels (…, Z)."""
    place = code[..., None] // _basis(levels) % jnp.asarray(levels)
    half = jnp.asarray([count // 2 for count in levels])
    return ((place - half) / half).astype(jnp.float32)


def _basis(levels: tuple[int, ...]) -> jax.Array:
    return jnp.asarray([math.prod(levels[:i]) for i in range(len(levels))], jnp.int32)


# A codebook -----------------------------------------------------------------------------------


def l2_normalize(x: jax.Array) -> jax.Array:
    """Vectors of length 1; the zero vector stays what it is, and has a gradient."""
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


def nearest_code(z_NZ: jax.Array, codebook_KZ: jax.Array) -> jax.Array:
    """The number of the nearest code of each vector; of equals the first."""
    return ((codebook_KZ**2).sum(-1) - 2 * z_NZ @ codebook_KZ.T).argmin(-1).astype(jnp.int32)


def segment_sums(z_NZ: jax.Array, code_N: jax.Array, weight_N: jax.Array, codes: int):
    """Of each code the weight of its vectors (K,) and their weighted sum (K, Z)."""
    # A vector without weight may be anything, even infinite.
    part_NZ = jnp.where(weight_N[:, None] != 0, z_NZ * weight_N[:, None], 0)
    count_K = jax.ops.segment_sum(weight_N, code_N, codes)
    return count_K, jax.ops.segment_sum(part_NZ, code_N, codes)


def kmeans(
    z_NZ: jax.Array, weight_N: jax.Array, codes: int, rounds: int, spherical: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Lloyd's algorithm from the first vectors that have weight.

    If there are fewer vectors than codes, the rest of the codes are copies without members.

    Args:
      z_NZ, weight_N: the vectors in random order and what they count.
      codes: K.
      rounds: how often the codes move.
      spherical: whether vectors and codes are of length 1.

    Returns:
      The codes (K, Z), and the weight of the members of each (K,).
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
    """Random vectors in slots, as ratios of two sums: pools add up.

    Each vector falls into a random slot with a random weight of a very heavy tail, so that the
    heaviest one there is nearly all of the weighted mean: `sums / weights` is about a vector drawn
    at random. Being sums, the pools of microbatches and devices make the pool of the whole batch.

    Args:
      z_NZ, weight_N: the vectors; those of weight 0 are left out.
      draw_N2: two uniform numbers for each.
      slots: M.

    Returns:
      The sums (M, Z) and the weights (M,), 0 in an empty slot.
    """
    slot_N = jnp.minimum((draw_N2[:, 0] * slots).astype(jnp.int32), slots - 1)
    heavy_N = jnp.maximum(1 - draw_N2[:, 1], FLOOR) ** -STEEPNESS
    weight_M, sum_MZ = segment_sums(z_NZ, slot_N, jnp.where(weight_N > 0, heavy_N, 0), slots)
    return sum_MZ, weight_M
