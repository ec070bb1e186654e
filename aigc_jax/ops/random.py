"""Random numbers per example.

Every draw uses the example's own key, so it does not depend on how a batch is sharded.
"""

import jax
import jax.numpy as jnp


def fold(key_B: jax.Array, data: int | jax.Array) -> jax.Array:
    """Folds `data` into per-example keys, for keys of another purpose."""
    return jax.vmap(jax.random.fold_in, (0, None))(key_B, data)


def normal(key_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard normal noise (B, *shape), example by example."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(key_B)


def uniform(key_B: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draws uniform noise in [0, 1) of shape (B, *shape), example by example."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(key_B)


def numbered_keys(key: jax.Array, number_B: jax.Array) -> jax.Array:
    """Returns one key per example, a function of `key` and the example's number."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(number_B))


def content_keys(x_B: jax.Array) -> jax.Array:
    """Returns one key per example, a hash of its bytes, uint8 (B, …).

    Equal bytes have equal keys; different ones collide with probability 2⁻⁶⁴: two sums of the bytes
    with fixed random weights, modulo 2³², are folded in.
    """
    byte_BN = x_B.reshape(x_B.shape[0], -1).astype(jnp.uint32)
    factor_N2 = jax.random.bits(jax.random.key(0), (byte_BN.shape[1], 2), jnp.uint32)
    hash_B2 = (byte_BN[..., None] * factor_N2).sum(1, dtype=jnp.uint32)

    def folded(hash_2):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(1), hash_2[0]), hash_2[1])

    return jax.vmap(folded)(hash_B2)
