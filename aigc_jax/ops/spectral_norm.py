"""Spectral normalisation of kernels by power iteration (Miyato et al. 2018).

The vector of each kernel is kept from step to step.
Shapes: N inputs, M outputs of a kernel as a matrix; a convolution's N is height · width · inputs.
"""

from typing import Any

import jax
import jax.numpy as jnp

INIT_ITERATIONS = 20  # for fresh kernels; one per step is enough afterwards
MIN_NORM = 1e-6  # kernels of a smaller norm are left unchanged

Vectors = dict[str, jax.Array]


def init_vectors(params: Any, key: jax.Array) -> Vectors:
    """Returns a unit vector (M,) per kernel, close to its first right singular vector."""
    vectors = {}
    for i, (name, kernel) in enumerate(_kernels(params)):
        u_M = jax.random.normal(jax.random.fold_in(key, i), kernel.shape[-1:])
        vectors[name] = u_M / jnp.linalg.norm(u_M)
    for _ in range(INIT_ITERATIONS):
        vectors = power_iteration(params, vectors)
    return vectors


def power_iteration(params: Any, vectors: Vectors) -> Vectors:
    """Runs one power iteration for each kernel."""
    new = {}
    for name, kernel in _kernels(jax.lax.stop_gradient(params)):
        matrix_NM = kernel.reshape(-1, kernel.shape[-1])
        u_M = matrix_NM.T @ (matrix_NM @ vectors[name])
        size = jnp.linalg.norm(u_M)
        new[name] = jnp.where(
            size > MIN_NORM**2, u_M / jnp.maximum(size, MIN_NORM**2), vectors[name]
        )
    return new


def spectral_normalize(params: Any, vectors: Vectors) -> Any:
    """Divides each kernel W by σ = ‖W u‖, through which gradients flow.

    For a unit vector u, σ is at most the largest singular value, and equal to it once the iteration
    has converged. Arrays of fewer than two axes are returned unchanged.
    """

    def divide(path: tuple, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return leaf
        size = jnp.square(leaf.reshape(-1, leaf.shape[-1]) @ vectors[_name(path)]).sum()
        large = size > MIN_NORM**2
        return leaf / jnp.where(large, jnp.sqrt(jnp.where(large, size, 1)), 1)

    return jax.tree_util.tree_map_with_path(divide, params)


def _kernels(params: Any) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(_name(path), leaf) for path, leaf in leaves if leaf.ndim >= 2]


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
