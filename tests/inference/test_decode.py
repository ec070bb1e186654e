"""Decoding whole batches from the cache against the full forward pass."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from aigc_jax.families.lm.lstm import LSTM, LSTMConfig
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.inference import engine
from aigc_jax.inference.decode import decode
from aigc_jax.inference.prompts import pad_prompts
from aigc_jax.inference.sampling_params import SamplingParams

V, CONTEXT = 13, 16
MODELS = {
    "rotary": TransformerConfig(2, 16, 2),
    "learned": TransformerConfig(2, 16, 2, positions="learned"),
    "grouped": TransformerConfig(
        2, 16, 4, kv_heads=2, sliding_window=4, full_attention_every=2, scan_unroll=0
    ),
    "convolutions": TransformerConfig(2, 16, 2, conv_width=3),
    "lstm": LSTMConfig(2, 16),
}


def decoded(model, variables, keys, prompts, **kw):
    """New tokens after prompts of any lengths."""
    return decode(model, variables, keys, *pad_prompts(prompts).values(), **kw)


def model_and_params(which="rotary"):
    config = MODELS[which] if isinstance(which, str) else which
    model = (LSTM if isinstance(config, LSTMConfig) else Transformer)(config, V, CONTEXT)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))
    return model, tiny.perturbed(variables, scale=0.5)


def forward(model):
    return jax.jit(lambda variables, *args, **kwargs: model.apply(variables, *args, **kwargs))


PROMPTS = [np.array([1, 2, 3, 4, 5]), np.array([7, 8]), np.array([9, 1, 2])]
KEYS = jax.random.split(jax.random.key(2), 3)
GREEDY = SamplingParams(temperature=0.0)


@pytest.mark.xla_optimizations
@pytest.mark.parametrize("which", ["grouped", "convolutions", "lstm"])
def test_cached_logits_equal_the_full_forward_pass(which):
    model, params = model_and_params(which)
    tokens = jax.random.randint(jax.random.key(3), (2, CONTEXT), 0, V)
    apply = forward(model)
    full, _ = apply(params, tokens)
    prefix, cache = apply(params, tokens[:, :6], cache=model.init_cache(2, CONTEXT))
    pieces = [prefix]
    for t in range(6, CONTEXT):
        position = jnp.full((2, 1), t)
        piece, cache = apply(params, tokens[:, t : t + 1], position, cache=cache)
        pieces.append(piece)
    # The same sums in another order.
    chex.assert_trees_all_close(jnp.concatenate(pieces, 1), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["rotary", "learned", "convolutions", "lstm"])
def test_greedy_text_equals_the_full_forward_pass(which):
    """With prompts of different length in one batch."""
    model, params = model_and_params(which)
    out = decoded(model, params, KEYS, PROMPTS, max_new_tokens=7, sampling=GREEDY)
    apply = forward(model)
    for row, prompt in enumerate(PROMPTS):
        tokens = prompt.tolist()
        for _ in range(7):
            # Later positions cannot reach earlier ones: filling up keeps one shape.
            logits, _ = apply(params, jnp.array([tokens + [0] * (CONTEXT - len(tokens))]))
            tokens.append(int(logits[0, len(tokens) - 1].argmax()))
        assert np.asarray(out[row]).tolist() == tokens[len(prompt) :]


@pytest.mark.parametrize("which", ["learned", "grouped", "convolutions"])
def test_per_layer_it_is_the_scan_over_layers(which):
    model, params = model_and_params(which)
    tokens = jax.random.randint(jax.random.key(3), (2, 8), 0, V)
    apply = forward(model)
    _, cache = apply(params, tokens[:, :6], cache=model.init_cache(2, CONTEXT))
    apart, caches = model.per_layer_variables(params), model.per_layer_cache(cache)
    assert len(caches["layers"]) == model.config.layers
    for t in (6, 7):
        position = jnp.full((2, 1), t)
        looped, cache = apply(params, tokens[:, t : t + 1], position, cache=cache)
        single, caches = apply(apart, tokens[:, t : t + 1], position, cache=caches)
        chex.assert_trees_all_close(single, looped, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(model.per_layer_cache(cache), caches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", ["grouped", "convolutions"])
def test_per_layer_matrices_are_in_the_type_that_is_computed_in(which):
    """No bit of the logits changes, as each layer would make them so itself."""
    model, params = model_and_params(which)
    halves = Transformer(MODELS[which], V, CONTEXT, dtype=jnp.bfloat16)
    apart = halves.per_layer_variables(params)
    caches = halves.per_layer_cache(halves.init_cache(2, CONTEXT))
    types = {(x.ndim > 1, x.dtype.name) for x in jax.tree.leaves(apart)}
    assert types == {(True, "bfloat16"), (False, "float32")}
    tokens, place = jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.arange(3)[None].repeat(2, 0)
    found, _ = halves.apply(apart, tokens, place, cache=caches)
    whole = model.per_layer_variables(params)
    plain, _ = halves.apply(whole, tokens, place, cache=caches)
    chex.assert_trees_all_equal(found, plain)


@pytest.mark.parametrize("which", ["rotary", "lstm"])
def test_a_row_does_not_depend_on_its_neighbours(which):
    model, params = model_and_params(which)
    choice = SamplingParams(top_p=0.9, repetition_penalty=1.3)
    together = decoded(model, params, KEYS, PROMPTS, max_new_tokens=9, sampling=choice)
    alone = decoded(model, params, KEYS[1:2], PROMPTS[1:2], max_new_tokens=9, sampling=choice)
    np.testing.assert_array_equal(together[1], alone[0])


def test_a_row_ends_at_a_stop_token():
    model, params = model_and_params()
    free = np.asarray(decoded(model, params, KEYS, PROMPTS, max_new_tokens=8))
    stops = [int(free[0, 2]), int(free[1, 4])]
    out = np.asarray(decoded(model, params, KEYS, PROMPTS, max_new_tokens=8, stops=stops))
    for before, after in zip(free.tolist(), out.tolist(), strict=True):
        end = min((i for i, t in enumerate(before) if t in stops), default=7)
        assert after[: end + 1] == before[: end + 1]
        assert set(after[end + 1 :]) <= {stops[0]}


def test_a_callback_sees_all_tokens_and_ends_rows():
    model, params = model_and_params()
    free = np.asarray(decoded(model, params, KEYS, PROMPTS, max_new_tokens=30))
    seen = []

    def callback(token_NT):
        seen.append(token_NT.copy())
        return np.array([token_NT.shape[1] >= 10, False, False])

    out = np.asarray(decoded(model, params, KEYS, PROMPTS, max_new_tokens=30, callback=callback))
    assert [s.shape[1] for s in seen] == [8, 16, 24, 30]
    np.testing.assert_array_equal(out[1:], free[1:])
    np.testing.assert_array_equal(out[0, :16], free[0, :16])  # ended by the second look
    assert (out[0, 16:] == 0).all()
    np.testing.assert_array_equal(seen[-1], out)

    seen.clear()
    decoded(
        model,
        params,
        KEYS,
        PROMPTS,
        max_new_tokens=30,
        callback=lambda t: seen.append(t) or [True] * 3,
    )
    assert len(seen) == 1  # nobody waits for rows that have all ended


@pytest.mark.parametrize("which", ["rotary", "lstm"])
def test_models_without_learned_positions_go_on_past_their_context(which):
    model, params = model_and_params(which)
    out = decoded(model, params, KEYS, PROMPTS, max_new_tokens=3 * CONTEXT)
    assert out.shape == (3, 3 * CONTEXT) and (np.asarray(out) >= 0).all()


def test_past_the_context_the_cache_is_a_sliding_window():
    """With one layer the window is exactly the last CONTEXT tokens."""
    model, params = model_and_params(TransformerConfig(1, 16, 2))
    apply = forward(model)
    tokens = jax.random.randint(jax.random.key(3), (1, 2 * CONTEXT), 0, V)
    cache = model.init_cache(1)
    for t in range(2 * CONTEXT):
        last, cache = apply(params, tokens[:, t : t + 1], jnp.array([[t]]), cache=cache)
    window, _ = apply(params, tokens[:, -CONTEXT:])
    chex.assert_trees_all_close(last[0, 0], window[0, -1], rtol=1e-4, atol=1e-4)


def test_new_lengths_and_options_do_not_recompile():
    model, params = model_and_params(TransformerConfig(1, 16, 2))
    model = model.clone(context=256)
    engine._prefill.clear_cache()
    engine._insert.clear_cache()
    engine._advance.clear_cache()
    choices = [
        SamplingParams(),
        SamplingParams(top_k=3),
        SamplingParams(0.5, 0, 0.3, 0.1, 1.2),
        GREEDY,
    ]
    for n, choice in enumerate(choices):
        prompts = [np.arange(1, 2 + n + (n == 0)), np.array([1])]
        stops = list(range(n))
        for callback in (None, lambda t: [False, False]):
            decoded(
                model,
                params,
                KEYS[:2],
                prompts,
                max_new_tokens=9 + n,
                stops=stops,
                sampling=choice,
                callback=callback,
            )
    assert engine._prefill._cache_size() == engine._insert._cache_size() == 1
    assert engine._advance._cache_size() == 1
    for length in range(1, 200, 7):
        decoded(model, params, KEYS[:1], [np.ones(length, int)], max_new_tokens=4)
    assert engine._prefill._cache_size() == 1 + 5  # 16 to 256
    assert engine._advance._cache_size() <= 6  # and caches that are longer
