"""Language models under conditions: a vector beside every token, which the cache keeps."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.table_model import BYTE

from aigc_jax.core.conditions import LABEL, ClassLabel, Condition, null
from aigc_jax.families.lm.language_model import LanguageModel, LMConfig, LMSample
from aigc_jax.families.lm.lstm import LSTM, LSTMConfig
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.inference.decode import decode
from aigc_jax.inference.prompts import pad_prompts
from aigc_jax.inference.sampling_params import SamplingParams
from aigc_jax.nn.conditioner import ClassEmbedder, SequenceEmbedder

V, CONTEXT, WIDTH = 258, 16, 8
NETWORKS = {
    "transformer": functools.partial(Transformer, TransformerConfig(2, WIDTH, 2)),
    "lstm": functools.partial(LSTM, LSTMConfig(1, WIDTH)),
}
TOKENS = jnp.array([[1, 2, 3, 4], [1, 2, 3, 4], [9, 8, 7, 6]])
LABELS = {LABEL: Condition.of(jnp.array([0, 2, 2]))}


def make(name, embedders=None):
    return NETWORKS[name](V, CONTEXT, embedders=embedders)


@functools.cache
def conditioned(name):
    network = make(name, {LABEL: ClassEmbedder(3, WIDTH)})
    variables = jax.jit(network.init)(jax.random.key(0), TOKENS, conditions=LABELS)
    return network, tiny.perturbed(nn.unbox(variables), scale=0.5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_condition_is_a_vector_beside_every_token(name):
    network, variables = conditioned(name)
    encode = jax.jit(network.encode)
    given = encode(variables, TOKENS, conditions=LABELS)
    assert not np.allclose(given[0], given[1], atol=0.1)
    # Examples have their own; those without have the null embedding.
    chex.assert_trees_all_close(
        encode(variables, TOKENS[1:], conditions=jax.tree.map(lambda x: x[1:], LABELS)), given[1:],
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    absent = encode(variables, TOKENS, conditions=null(LABELS))
    chex.assert_trees_all_close(absent[0], absent[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(absent[1], given[1], atol=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_conditions_it_is_the_network_without_embedders(name):
    network, variables = conditioned(name)
    plain = {k: v for k, v in variables["params"].items() if not k.startswith("embedders")}
    assert len(plain) == len(variables["params"]) - 1
    expected = jax.jit(make(name).encode)({"params": plain}, TOKENS)
    chex.assert_trees_all_equal(jax.jit(network.encode)(variables, TOKENS), expected)
    with pytest.raises(ValueError, match="'label'"):
        make(name).encode({"params": plain}, TOKENS, conditions=LABELS)


@pytest.mark.parametrize("name", NETWORKS)
def test_written_text_keeps_its_condition(name):
    """The cache remembers it: greedy text is that of the full forward pass."""
    network, variables = conditioned(name)
    prompts = [np.array([1, 2]), np.array([1, 2]), np.array([9, 8, 7])]
    written = decode(
        network,
        variables,
        jax.random.split(jax.random.key(1), 3),
        *pad_prompts(prompts).values(),
        max_new_tokens=5,
        sampling=SamplingParams(temperature=0.0),
        conditions=LABELS,
    )
    assert written[0].tolist() != written[1].tolist()
    texts = [prompt.tolist() for prompt in prompts]
    apply = jax.jit(lambda tokens: network.apply(variables, tokens, conditions=LABELS)[0])
    for _ in range(5):
        logits = apply(jnp.array([text + [0] * (10 - len(text)) for text in texts]))
        for row, text in enumerate(texts):
            text.append(int(logits[row, len(text) - 1].argmax()))
    assert [text[-5:] for text in texts] == np.asarray(written).tolist()


def test_an_embedder_without_a_vector_is_refused():
    network = make("transformer", {"text": SequenceEmbedder(WIDTH)})
    given = {"text": Condition.of(jnp.ones((3, 2, 5)))}
    with pytest.raises(ValueError, match="vectors"):
        jax.eval_shape(lambda key: network.init(key, TOKENS, conditions=given), jax.random.key(0))


def test_an_objective_passes_conditions_on():
    network, _ = conditioned("transformer")
    objective = LanguageModel(LMConfig(), network, BYTE, {LABEL: ClassLabel(3)})
    batch = {
        "tokens": TOKENS,
        "label": jnp.array([0, 2, 1]),
        "weight": jnp.ones((3, TOKENS.shape[1] - 1)),
    }
    params, _ = objective.init(jax.random.key(0), batch)
    params = tiny.perturbed(nn.unbox(params), scale=0.5)
    keys = jax.random.split(jax.random.key(1), 3)
    loss = lambda p: objective.loss("model", p, {}, batch, keys, 0)[0].value()  # noqa: E731
    table = jax.jit(jax.grad(loss))(params)["model"]["embedders_label"]["embedding"]
    assert np.asarray(abs(table).max(-1) > 1e-4).tolist() == [True, True, True, False]
    options = LMSample(num=3, prompts=("a",), temperature=0.0, max_new_tokens=6)
    rows = tiny.draw(objective, params, {}, options, 6)  # every class in turn
    np.testing.assert_array_equal(rows[:3], rows[3:])
    assert len(np.unique(rows, axis=0)) == 3
