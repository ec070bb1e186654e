"""The recurrent model: the same step, documents kept apart, and text from its memory."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import tiny
from helpers.hostile import refusal

from aigc_jax.families.lm.lstm import LSTM, LSTMConfig
from aigc_jax.training.init import init_state
from aigc_jax.training.step import make_step

V, T, W = 11, 8, 6
TOKENS = np.array([[3, 9, 10, 1, 1, 2, 4, 0], [3, 9, 10, 0, 0, 0, 0, 0], [1, 1, 2, 4, 0, 0, 0, 0]])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1] * 3 + [0] * 5, [1] * 4 + [0] * 4])


@functools.cache
def model():
    network = LSTM(LSTMConfig(2, W), V, T)
    shapes = nn.unbox(jax.eval_shape(network.init, jax.random.key(0), jnp.asarray(TOKENS)))
    params = tiny.perturbed(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), scale=0.5)
    apply = jax.jit(lambda *a: network.apply(*a[:2], segments_BT=a[2], cache=network.init_cache(3)))
    return params, functools.partial(apply, params)


def by_hand(params, tokens):
    """Logits (T, V) of one document, and the memory of both layers after it."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    x = p["token_embedding"]["embedding"][tokens]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    memory = []
    for layer in range(2):
        cell, c, h, out = p[f"layers_{layer}"]["cell"], np.zeros(W), np.zeros(W), []
        for t in range(len(tokens)):
            gate = {
                k: x[t] @ cell[f"i{k}"]["kernel"]
                + h @ cell[f"h{k}"]["kernel"]
                + cell[f"h{k}"]["bias"]
                for k in "ifgo"
            }
            c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["g"])
            h = sigmoid(gate["o"]) * np.tanh(c)
            out.append(h)
        x = x + np.array(out)
        memory.append((c, h))
    return x @ p["token_embedding"]["embedding"].T, memory


def test_each_document_gets_its_own_memory():
    """Packed beside another, alone, and with padding behind it, which the memory outlives."""
    params, apply = model()
    logits, cache = apply(TOKENS, SEGMENTS)
    for row, segment in ((0, 1), (0, 2), (1, 1), (2, 1)):
        own = SEGMENTS[row] == segment
        expected, memory = by_hand(params, TOKENS[row][own])
        np.testing.assert_allclose(logits[row][own], expected, rtol=1e-4, atol=1e-5)
        if segment == SEGMENTS[row].max():
            for layer in range(2):
                for name, value in zip("ch", memory[layer], strict=True):
                    np.testing.assert_allclose(cache[name][layer, row], value, rtol=1e-4, atol=1e-5)
    changed = np.where(SEGMENTS > 0, TOKENS, 7)
    other, kept = apply(changed, SEGMENTS)
    chex.assert_trees_all_equal(logits[SEGMENTS > 0], other[SEGMENTS > 0])
    chex.assert_trees_all_equal(cache, kept)


def test_a_repeating_text_is_learned_and_written_on():
    """With the train step and the sampling of every family."""
    run = tiny.make(
        "lm",
        model=dict(name="lstm", layers=1, width=16, heads=None),
        sample=dict(prompts=("ab",), temperature=0.0, max_new_tokens=7, num=1),
    )
    text = np.frombuffer(b"abc" * 8, np.uint8).astype(np.int32)
    rows = np.stack([text[i : i + tiny.SEQ_LEN + 1] for i in range(4)])
    rows[3, 0] = 256  # a text begins with the separator
    batch = {"tokens": rows, "weight": np.ones((4, tiny.SEQ_LEN), np.float32)}
    adam = {"model": optax.adam(0.05)}
    start = tiny.params(run, "lm", scale=0.3)
    run.objective.init = lambda *_: (start, {})
    state = init_state(run.objective, adam, batch, jnp.int32(0), ema=False)
    step, losses = jax.jit(make_step(run.objective, adam)), []
    for _ in range(60):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"].value()))
    assert losses[0] > 5 and losses[-1] < 0.2
    samples = tiny.draw(run.objective, state.params, {}, run.config.sample, 1)
    assert run.objective.texts(samples, run.config.sample) == ["abcabcabc"]


def test_an_lstm_cannot_read_backwards():
    changes = dict(model=dict(name="lstm", heads=None), objective=dict(name="masked_lm"))
    message = refusal(tiny.make, "lm", **changes, sample=dict(max_new_tokens=None))
    assert "model.causal=False" in message
