"""How a token is drawn from its logits: distributions, and parameters of each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.inference.sampling_params import SamplingParams, sample_tokens

LOGITS = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.25, 0.2]))


def frequencies(**options):
    keys = jax.random.split(jax.random.key(0), 20_000)
    logits = jnp.broadcast_to(LOGITS, (20_000, 5))
    seen = jnp.broadcast_to(jnp.arange(5) < 2, logits.shape)
    tokens = jax.jit(sample_tokens)(keys, logits, seen, SamplingParams(**options).as_arrays(20_000))
    return np.bincount(np.asarray(tokens), minlength=5) / 20_000


@pytest.mark.parametrize(
    "options,expected",
    [
        ({}, [0.1, 0.4, 0.05, 0.25, 0.2]),
        (dict(top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (dict(top_k=9), [0.1, 0.4, 0.05, 0.25, 0.2]),
        (dict(top_p=0.6), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (dict(top_p=0.0), [0, 1, 0, 0, 0]),
        (dict(top_k=3, top_p=0.5), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (dict(temperature=0.0), [0, 1, 0, 0, 0]),
        (dict(min_p=0.6), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (dict(min_p=0.2, temperature=0.5), np.array([0, 0.16, 0, 0.0625, 0.04]) / 0.2625),
        (dict(repetition_penalty=2.0), np.array([0.01, 0.16, 0.05, 0.25, 0.2]) / 0.67),
        (dict(temperature=0.5), np.array([0.01, 0.16, 0.0025, 0.0625, 0.04]) / 0.275),
    ],
)
def test_tokens_have_the_right_distribution(options, expected):
    # 20,000 draws: a standard error of at most 0.0035.
    np.testing.assert_allclose(frequencies(**options), expected, atol=0.015)


def test_a_positive_logit_is_divided_by_the_repetition_penalty():
    logits, seen = jnp.array([[3.0, 2.0, -1.0]]), jnp.array([[True, False, False]])
    params = SamplingParams(temperature=0.0, repetition_penalty=2.0).as_arrays(1)
    keys = jax.random.split(jax.random.key(2), 1)
    assert sample_tokens(keys, logits, seen, params).tolist() == [1]


ROWS = [
    {},
    dict(temperature=0.0),
    dict(top_k=2),
    dict(top_p=0.6),
    dict(min_p=0.6),
    dict(repetition_penalty=2.0, temperature=0.5),
]


def test_each_row_has_its_own_parameters():
    """The same tokens as alone, bit for bit, whatever the other rows switch on."""
    count = 40 * len(ROWS)
    fields = SamplingParams.__dataclass_fields__
    rows = [ROWS[n % len(ROWS)] for n in range(count)]
    params = SamplingParams(
        **{name: np.array([row.get(name, fields[name].default) for row in rows]) for name in fields}
    )
    keys = jax.random.split(jax.random.key(1), count)
    logits = jax.random.normal(jax.random.key(2), (count, 7))
    seen = jax.random.bernoulli(jax.random.key(3), 0.5, logits.shape)
    draw = jax.jit(sample_tokens)
    together = draw(keys, logits, seen, params.as_arrays(count))
    for n, row in enumerate(ROWS):
        own = slice(n, None, len(ROWS))
        alone = draw(keys[own], logits[own], seen[own], SamplingParams(**row).as_arrays(40))
        np.testing.assert_array_equal(together[own], alone)


def test_rows_that_are_not_active_switch_nothing_on():
    """Their parameters are ignored, and active rows are what they are without them."""
    keys, logits = jax.random.split(jax.random.key(1), 2), jnp.array([[1.0, 2.0], [3.0, 2.0]])
    params = SamplingParams(temperature=np.array([0.0, 5.0])).as_arrays(2)
    active = jnp.array([True, False])
    found = sample_tokens(keys, logits, jnp.zeros((2, 2), bool), params, active)
    assert found.tolist() == [1, 0]  # greedy, though the second row asks for a draw
