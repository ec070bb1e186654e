"""Conditions become vectors, sequences and pictures; absent ones their null embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.conditions import Condition, drop, null
from aigc_jax.nn.conditioner import (
    ClassEmbedder,
    Conditioner,
    OneHotEmbedder,
    PictureEmbedder,
    SequenceEmbedder,
    VectorEmbedder,
)

KEY = jax.random.key(0)
LABEL = Condition.of(jnp.array([0, 2, 1]))
NUMBERS = Condition.of(jnp.arange(6.0).reshape(3, 2) + 1)
WORDS = Condition.of(jnp.ones((3, 4, 5)).at[0, 2:].set(0))
EVERYTHING = {
    "label": LABEL,
    "numbers": NUMBERS,
    "words": WORDS,
    "sketch": Condition.of(jnp.ones((3, 7, 1))),
    "mask": Condition.of(jnp.full((3, 7, 2), 2.0)),
    "unknown": Condition.of(jnp.ones(3)),
}


class Network(nn.Module):
    null_class: bool = True

    @nn.compact
    def __call__(self, conditions):
        return Conditioner({
            "label": ClassEmbedder(3, 8, self.null_class, name="label"),
            "numbers": VectorEmbedder(8, name="numbers"),
            "words": SequenceEmbedder(6, name="words"),
            "sketch": PictureEmbedder(),
            "mask": PictureEmbedder(),
        })(conditions)  # fmt: skip


def embed(conditions, params=None, **kwargs):
    network = Network(**kwargs)
    params = nn.unbox(network.init(KEY, conditions)) if params is None else params
    return network.apply(params, conditions), params


def test_python_data_becomes_examples():
    embedding, params = embed(EVERYTHING)
    assert embedding.vector.shape == (3, 8)
    assert embedding.sequence.shape == (3, 4, 6) and embedding.mask.shape == (3, 4)
    np.testing.assert_array_equal(embedding.mask.sum(1), [2, 4, 4])
    np.testing.assert_array_equal(embedding.picture[0, 0], [1, 2, 2])
    assert set(params["params"]) == {"label", "numbers", "words"}


def test_vectors_add_up_and_nothing_is_none():
    both, params = embed({"label": LABEL, "numbers": NUMBERS})
    one, other = (embed({k: EVERYTHING[k]}, params)[0] for k in ("label", "numbers"))
    np.testing.assert_allclose(both.vector, one.vector + other.vector, rtol=1e-5)
    assert both.sequence is both.mask is both.picture is None
    nothing, params = embed({})
    assert nothing.vector is None and not params


def test_null_embeddings_take_the_place_of_absent_conditions():
    whole, params = embed(EVERYTHING)
    free, _ = embed(null(EVERYTHING), params)
    table = params["params"]["label"]["embedding"]
    np.testing.assert_allclose(free.vector, jnp.broadcast_to(table[3], (3, 8)), rtol=1e-6)
    np.testing.assert_array_equal(free.mask.sum(1), [1, 1, 1])  # attention has something to see
    assert not free.picture.any()
    # Example by example.
    mixed, _ = embed(drop(EVERYTHING, jnp.array([False, True, False])), params)
    for part in ("vector", "sequence", "mask", "picture"):
        got, here, there = (getattr(e, part) for e in (mixed, whole, free))
        np.testing.assert_allclose(got[1], there[1], rtol=1e-5)
        np.testing.assert_allclose(got[jnp.array([0, 2])], here[jnp.array([0, 2])], rtol=1e-5)
    without, _ = embed(null({"label": LABEL}), null_class=False)
    assert not without.vector.any()


def test_sequences_are_joined_and_slicing_is_one_map():
    conditioner = Conditioner(
        {"a": lambda v, p: embed({"words": Condition(v, p)})[0]} | {"b": OneHotEmbedder(3)}
    )
    conditions = {"a": WORDS, "b": LABEL}
    whole = conditioner(conditions)
    rows = conditioner(jax.tree.map(lambda x: x[1:], conditions))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b), whole, rows)
    joined = whole.merge(whole)
    assert joined.sequence.shape == (3, 8, 6) and joined.mask.shape == (3, 8)
    np.testing.assert_array_equal(joined.vector, 2 * whole.vector)
