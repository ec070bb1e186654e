"""Cross-entropy in pieces: the numbers of the whole, and never all logits in memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.ops.cross_entropy import cross_entropy

B, T, W, V = 2, 7, 5, 13
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, W)).astype(np.float32)
KERNEL = RNG.normal(size=(W, V)).astype(np.float32)
TARGET = RNG.integers(0, V, (B, T)).astype(np.int32)
WEIGHTS = RNG.normal(size=(3, B, T)).astype(np.float32)  # of what a loss may use
WHOLE = B * T * V
LIMITS = [WHOLE, WHOLE // 2, WHOLE // 3, B * V, 1]  # 1, 2, 4, 7 and 7 pieces


def total(kernel, x, limit):
    """A sum that depends on every part that has a gradient."""
    found = cross_entropy(lambda x: x @ kernel, x, TARGET, V, limit)
    parts = found.nats, found.log_z, found.smooth
    return sum((w * part).sum() for w, part in zip(WEIGHTS, parts, strict=True)), found


@functools.cache
def expected():
    """Values by optax's formulas, and their gradients."""

    def plain(kernel, x):
        logits = x @ kernel
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, TARGET)
        everything = optax.softmax_cross_entropy(logits, jnp.full((B, T, V), 1 / V))
        log_z = jax.nn.logsumexp(logits, -1)
        parts = nats, log_z, everything
        correct = logits.argmax(-1) == TARGET
        return sum((w * p).sum() for w, p in zip(WEIGHTS, parts, strict=True)), (*parts, correct)

    return jax.jit(jax.value_and_grad(plain, argnums=(0, 1), has_aux=True))(KERNEL, X)


@pytest.mark.parametrize("limit", LIMITS)
def test_pieces_give_the_numbers_of_the_whole(limit):
    """In value and gradient, also by what the head holds; seven tokens are cut unevenly."""
    both = jax.jit(jax.value_and_grad(functools.partial(total, limit=limit), (0, 1), has_aux=True))
    (_, found), grads = both(KERNEL, X)
    (_, parts), plain = expected()
    chex.assert_trees_all_close(
        (found.nats, found.log_z, found.smooth, found.correct), parts, rtol=1e-5, atol=1e-5
    )
    assert found.correct.dtype == jnp.float32 and 0 < found.correct.sum() < B * T
    chex.assert_trees_all_close(grads, plain, rtol=1e-4, atol=1e-5)


def largest(jaxpr):
    """The size of the largest array of numbers that is computed anywhere inside."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars if v.aval.dtype == jnp.float32]
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            sizes += [largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


def test_all_logits_are_never_in_memory():
    """Neither forward nor backward; the largest array is that of a piece, or the inputs'."""
    sizes = {}
    for limit in (WHOLE, WHOLE // 3):
        grads = jax.grad(functools.partial(total, limit=limit), (0, 1), has_aux=True)
        sizes[limit] = largest(jax.make_jaxpr(grads)(KERNEL, X).jaxpr)
    assert sizes[WHOLE] == WHOLE
    assert sizes[WHOLE // 3] <= max(B * 2 * V, B * 8 * W)  # two tokens; inputs filled up to eight


def test_logits_of_half_precision_are_summed_in_full():
    """300 equal logits: their sum would stop at 256 in bfloat16."""
    head = lambda x: jnp.zeros((*x.shape[:2], 300), jnp.bfloat16)  # noqa: E731
    for limit in (1 << 20, 1):
        found = cross_entropy(head, X, TARGET, 300, limit)
        assert found.nats.dtype == jnp.float32
        np.testing.assert_allclose(found.nats, np.log(300), rtol=1e-6)
