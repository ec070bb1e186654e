"""Spectral normalisation: divides kernels by their largest singular value (Miyato et al. 2018).

The singular value is estimated by power iteration, with a vector per kernel kept across steps.
Shapes: N inputs, M outputs of a kernel as a matrix; a convolution's N is height · width · inputs.
"""

from typing import Any

import jax
import jax.numpy as jnp

START = 20  # iterations at initialisation; one per step is enough afterwards
SMALL = 1e-6  # kernels with a smaller norm are not normalised

Vectors = dict[str, jax.Array]


def init_vectors(params: Any, key: jax.Array) -> Vectors:
    """Returns a unit vector (M,) per kernel, close to its first right singular vector."""
    vectors = {}
    for i, (name, kernel) in enumerate(_kernels(params)):
        u_M = jax.random.normal(jax.random.fold_in(key, i), kernel.shape[-1:])
        vectors[name] = u_M / jnp.linalg.norm(u_M)
    for _ in range(START):
        vectors = power_iteration(params, vectors)
    return vectors


def power_iteration(params: Any, vectors: Vectors) -> Vectors:
    """Performs one power iteration for each kernel; returns the new vectors."""
    new = {}
    for name, kernel in _kernels(jax.lax.stop_gradient(params)):
        matrix_NM = kernel.reshape(-1, kernel.shape[-1])
        u_M = matrix_NM.T @ (matrix_NM @ vectors[name])
        size = jnp.linalg.norm(u_M)
        new[name] = jnp.where(size > SMALL**2, u_M / jnp.maximum(size, SMALL**2), vectors[name])
    return new


def spectral_normalize(params: Any, vectors: Vectors) -> Any:
    """Returns the parameters with each kernel W divided by σ = ‖W u‖; gradients flow through σ.

    For a unit vector u, σ is at most the largest singular value, and equals it when the iteration
    has converged. Arrays with fewer than two axes are unchanged.
    """

    def divide(path: tuple, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return leaf
        size = jnp.square(leaf.reshape(-1, leaf.shape[-1]) @ vectors[_name(path)]).sum()
        large = size > SMALL**2
        return leaf / jnp.where(large, jnp.sqrt(jnp.where(large, size, 1)), 1)

    return jax.tree_util.tree_map_with_path(divide, params)


def _kernels(params: Any) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(_name(path), leaf) for path, leaf in leaves if leaf.ndim >= 2]


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
