"""Continuous batching: rows come and go in the slots of one program, and none notices another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from aigc_jax.families.lm.lstm import LSTM, LSTMConfig
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.inference import engine as engine_lib
from aigc_jax.inference.engine import NO_TOKEN, Engine
from aigc_jax.inference.prompts import pad_prompts
from aigc_jax.inference.sampling_params import SamplingParams
from aigc_jax.ops import dispatch

V, CONTEXT, NEW = 13, 32, 12
MODELS = {
    "windows": TransformerConfig(2, 16, 4, kv_heads=2, sliding_window=4, full_attention_every=2),
    "convolutions": TransformerConfig(2, 16, 2, conv_width=3, positions="learned"),
    "lstm": LSTMConfig(2, 16),
}
# Prompt, new tokens and parameters of each request.
REQUESTS = [
    ([1, 2, 3, 4, 5], 9, dict(temperature=0.0)),
    ([7, 8], 5, dict(top_p=0.9, repetition_penalty=1.3)),
    ([9, 1, 2], 11, {}),
    ([4] * 17, 7, dict(top_k=3, temperature=0.7)),
    ([12], 3, dict(min_p=0.1)),
]
KEYS = jax.random.split(jax.random.key(5), len(REQUESTS))


@functools.cache
def network(which):
    config = MODELS[which]
    model = (LSTM if isinstance(config, LSTMConfig) else Transformer)(config, V, CONTEXT)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))
    return model, tiny.perturbed(variables, scale=0.5)


def make(which, slots=3, stops=()):
    model, variables = network(which)
    return Engine(model, variables, slots=slots, length=CONTEXT, max_new_tokens=NEW, stops=stops)


def insert(engine, state, slot, n):
    prompt, new, sampling = REQUESTS[n]
    prefix = engine.prefill(*pad_prompts([np.array(prompt)]).values())
    given = dict(key=KEYS[n], max_new_tokens=new, sampling=SamplingParams(**sampling))
    return engine.insert(prefix, state, slot, **given)


@functools.cache
def alone(which, n):
    """The tokens of a request that has the engine for itself."""
    engine = make(which)
    state = engine.advance(insert(engine, None, 0, n), NEW)
    assert int(state.count_N[0]) == REQUESTS[n][1] and state.done_N.all()
    return np.asarray(state.token_NT)[0, : REQUESTS[n][1]].tolist()


@pytest.mark.parametrize("form", ["by_layer", "reference"])
@pytest.mark.parametrize("which", MODELS)
def test_rows_do_not_depend_on_their_company(which, form):
    """Inserted at different times, into slots that others have left, and freed before their end."""
    if which == "lstm" and form == "reference":
        pytest.skip("an LSTM has one form only")
    with dispatch.override(decoding=form):
        engine = make(which)
        state, written = engine.init_state(), {n: [] for n in range(5)}
        slots = {}

        def step(state, times):
            for _ in range(times):
                state, token_N = engine.step(state)
                for slot, token in enumerate(token_N.tolist()):
                    if token != NO_TOKEN:
                        written[slots[slot]].append(token)
            return state

        def start(state, slot, n):
            slots[slot] = n
            return insert(engine, state, slot, n)

        state = step(start(state, 1, 0), 2)
        state = step(start(state, 2, 1), 3)
        state = step(start(state, 0, 2), 2)
        assert state.done_N.tolist() == [False, False, True]  # the second request is complete
        state = step(start(state, 2, 3), 2)
        state = engine.free(state, 0)  # the third is not
        state = step(start(state, 0, 4), 9)
        assert state.done_N.all()
    for n in (0, 1, 3, 4):
        assert written[n] == alone(which, n), n
    assert written[2] == alone(which, 2)[:4]


@pytest.mark.parametrize("which", ["windows", "lstm"])
def test_a_slot_remembers_nothing_of_the_row_before(which):
    """Not even numbers that are none."""
    engine = make(which, slots=1)
    state = insert(engine, None, 0, 3)
    broken = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x.dtype == jnp.float32 else x, state.cache
    )
    state = engine.advance(insert(engine, state.replace(cache=broken), 0, 1), NEW)
    assert state.token_NT[0, :5].tolist() == alone(which, 1)


def test_several_rows_are_inserted_at_once():
    engine = make("windows")
    prompts = [np.array(REQUESTS[n][0]) for n in (3, 1)]
    options = [REQUESTS[n][2] for n in (3, 1)]
    sampling = SamplingParams(
        temperature=np.array([0.7, 1.0]),
        top_k=np.array([3, 0]),
        top_p=np.array([1.0, 0.9]),
        repetition_penalty=np.array([1.0, 1.3]),
    )
    assert [set(o) for o in options] == [{"top_k", "temperature"}, {"top_p", "repetition_penalty"}]
    state = insert(engine, engine.init_state(), 1, 0)
    prefix = engine.prefill(*pad_prompts(prompts).values())
    given = dict(key=KEYS[jnp.array([3, 1])], max_new_tokens=np.array([7, 5]), sampling=sampling)
    state = engine.advance(engine.insert(prefix, state, [2, 0], **given), NEW)
    assert state.count_N.tolist() == [5, 9, 7]
    for slot, n in ((0, 1), (1, 0), (2, 3)):
        assert state.token_NT[slot, : REQUESTS[n][1]].tolist() == alone("windows", n)


def test_advancing_is_stepping():
    engine = make("windows", stops=[int(alone("windows", 0)[4])])
    first, second = (insert(engine, None, 2, 0) for _ in range(2))
    first = engine.advance(first, 3)
    for _ in range(3):
        second, token_N = engine.step(second)
        assert token_N.tolist()[:2] == [NO_TOKEN] * 2
    np.testing.assert_array_equal(first.token_NT, second.token_NT)
    np.testing.assert_array_equal(first.count_N, [0, 0, 3])
    first = engine.advance(first, 100)  # which a stop token ends
    end = alone("windows", 0).index(alone("windows", 0)[4]) + 1
    assert first.count_N.tolist() == [0, 0, end] and first.done_N.all()
    assert set(first.token_NT[2, end:].tolist()) <= {alone("windows", 0)[4]}


def test_requests_do_not_recompile():
    engine = make("windows")
    functions = engine_lib._insert, engine_lib._step, engine_lib._advance, engine_lib._free
    for function in functions:
        function.clear_cache()
    state = engine.init_state()
    for n in (0, 1, 2, 4):
        state, _ = engine.step(insert(engine, state, n % 3, n))
        state = engine.free(engine.advance(state, n), n % 2)
    assert [function._cache_size() for function in functions] == [1, 1, 1, 1]


def test_a_prompt_that_does_not_fit_a_slot_is_refused():
    engine = make("windows")
    for length in (0, CONTEXT + 1):
        with pytest.raises(ValueError, match="1 to 32"):
            engine.prefill(np.ones((1, CONTEXT + 1), np.int32), np.array([length], np.int32))
