"""Reductions and broadcasts of examples of any rank."""

import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.ops import per_example


@pytest.mark.parametrize("shape", [(), (4,), (4, 2), (2, 3, 4, 1), (2, 2, 2, 2, 3)])
def test_of_any_rank(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *shape)), jnp.float32)
    flat = np.asarray(x).reshape(3, -1)
    np.testing.assert_allclose(per_example.sum_per_example(x), flat.sum(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(per_example.mean_per_example(x), flat.mean(1), rtol=1e-4, atol=1e-6)
    norm = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(per_example.norm_per_example(x), norm, rtol=1e-5)
    value_B = jnp.array([1.0, 10.0, 100.0])
    scaled = per_example.expand_like(value_B, x) * x
    np.testing.assert_allclose(scaled.reshape(3, -1), flat * np.asarray(value_B)[:, None])


def test_axes_that_are_there_are_kept():
    assert per_example.expand_like(jnp.ones((3, 5)), jnp.ones((3, 5, 2, 2))).shape == (3, 5, 1, 1)
