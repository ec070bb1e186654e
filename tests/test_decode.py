"""Decoding from the KV cache against the full forward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from aigc_jax.models.transformer import Transformer, TransformerConfig
from aigc_jax.sampling import decode as decode_lib
from aigc_jax.sampling.decode import decode, draw

V, CONTEXT = 13, 16


def model_and_params(positions="rotary", layers=2):
    model = Transformer(TransformerConfig(layers, 16, 2, positions=positions), V, CONTEXT)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    return model, tiny.perturbed(params, scale=0.5)


def forward(model):
    return jax.jit(lambda params, *args, **kwargs: model.apply({"params": params}, *args, **kwargs))


PROMPTS = np.array([[1, 2, 3, 4, 5], [7, 8, 0, 0, 0], [9, 1, 2, 0, 0]], np.int32)
LENGTHS = np.array([5, 2, 3], np.int32)
KEYS = jax.random.split(jax.random.key(2), 3)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_cached_logits_equal_the_full_forward_pass(positions):
    model, params = model_and_params(positions)
    tokens = jax.random.randint(jax.random.key(3), (2, CONTEXT), 0, V)
    apply = forward(model)
    full, _ = apply(params, tokens)
    prefix, cache = apply(params, tokens[:, :6], cache=model.init_cache(2))
    pieces = [prefix]
    for t in range(6, CONTEXT):
        position = jnp.full((2, 1), t)
        piece, cache = apply(params, tokens[:, t : t + 1], position, cache=cache)
        pieces.append(piece)
    # The same sums in another order.
    chex.assert_trees_all_close(jnp.concatenate(pieces, 1), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_greedy_text_equals_the_full_forward_pass(positions):
    """With prompts of different length in one batch."""
    model, params = model_and_params(positions)
    out = decode(model, params, KEYS, PROMPTS, LENGTHS, max_new_tokens=7, temperature=0.0)
    apply = forward(model)
    for row in range(3):
        tokens = PROMPTS[row, : LENGTHS[row]].tolist()
        for _ in range(7):
            # Later positions cannot reach earlier ones: filling up keeps one shape.
            logits, _ = apply(params, jnp.array([tokens + [0] * (CONTEXT - len(tokens))]))
            tokens.append(int(logits[0, len(tokens) - 1].argmax()))
        assert np.asarray(out[row]).tolist() == tokens[LENGTHS[row] :]


def test_a_row_does_not_depend_on_its_neighbours():
    model, params = model_and_params()
    together = decode(model, params, KEYS, PROMPTS, LENGTHS, max_new_tokens=9, top_p=0.9)
    alone = decode(
        model, params, KEYS[1:2], PROMPTS[1:2, :2], LENGTHS[1:2], max_new_tokens=9, top_p=0.9
    )
    np.testing.assert_array_equal(together[1], alone[0])


def test_a_row_ends_at_the_stop_token():
    model, params = model_and_params()
    free = np.asarray(decode(model, params, KEYS, PROMPTS, LENGTHS, max_new_tokens=8))
    stop = int(free[0, 2])
    out = np.asarray(decode(model, params, KEYS, PROMPTS, LENGTHS, max_new_tokens=8, stop=stop))
    for before, after in zip(free, out, strict=True):
        end = before.tolist().index(stop) if stop in before else 8
        np.testing.assert_array_equal(after[:end], before[:end])
        assert (after[end:] == stop).all()


def test_rotary_models_go_on_past_their_context():
    """The cache becomes a sliding window over the last tokens."""
    model, params = model_and_params()
    out = decode(model, params, KEYS, PROMPTS, LENGTHS, max_new_tokens=3 * CONTEXT)
    assert out.shape == (3, 3 * CONTEXT) and (np.asarray(out) >= 0).all()
    # One layer: the window is exactly the last CONTEXT tokens.
    model, params = model_and_params(layers=1)
    apply = forward(model)
    tokens = jax.random.randint(jax.random.key(3), (1, 2 * CONTEXT), 0, V)
    cache = model.init_cache(1)
    for t in range(2 * CONTEXT):
        last, cache = apply(params, tokens[:, t : t + 1], jnp.array([[t]]), cache=cache)
    window, _ = apply(params, tokens[:, -CONTEXT:])
    chex.assert_trees_all_close(last[0, 0], window[0, -1], rtol=1e-4, atol=1e-4)


def test_new_lengths_and_options_do_not_recompile():
    model, params = model_and_params()
    decode_lib._decode.clear_cache()
    for count, options in ((5, {}), (8, dict(top_k=3)), (7, dict(temperature=0.5, top_p=0.3))):
        prompts = PROMPTS[:, : count - 3]
        decode(
            model,
            params,
            KEYS,
            prompts,
            np.full(3, prompts.shape[1]),
            max_new_tokens=count,
            **options,
        )
    assert decode_lib._decode._cache_size() <= 3  # prompts of 2, 4 and 5 tokens: 2, 4 and 8


LOGITS = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.25, 0.2]))


def frequencies(**options):
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    options = {k: jnp.asarray(v) for k, v in options.items()}
    keys = jax.random.split(jax.random.key(0), 20_000)
    tokens = draw(keys, jnp.broadcast_to(LOGITS, (20_000, 5)), **options)
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
        (dict(temperature=0.5), np.array([0.01, 0.16, 0.0025, 0.0625, 0.04]) / 0.275),
    ],
)
def test_draw_has_the_right_distribution(options, expected):
    # 20,000 draws: a standard error of at most 0.0035.
    np.testing.assert_allclose(frequencies(**options), expected, atol=0.015)
