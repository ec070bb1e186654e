"""Autoregressive decoding: one jitted prefill, then one jitted loop over a cache.

Shapes: N sequences, P prompt tokens, T new tokens, V vocabulary, Z stop tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.ops import dispatch

CALLBACK_EVERY = 8  # tokens between two looks at what has been drawn
SHORTEST = 16  # no bucket of prompts is shorter

# Told the new tokens of all rows so far (N, t); returns the rows that need no more (N,).
Watch = Callable[[np.ndarray], np.ndarray]


class TextModel(Protocol):
    """What decoding needs of a model: `models.transformer` and `models.lstm` have it."""

    context: int

    def apply(self, variables: Any, *args: Any, method: str, **kwargs: Any) -> Any: ...

    def init_cache(self, batch: int, slots: int) -> Any: ...

    def by_layer(self, variables: Any, cache: Any) -> tuple[Any, Any]: ...


@flax.struct.dataclass
class SamplingParams:
    """How a token is drawn from its logits; all scalars are traced.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among the k likeliest; 0: all.
      top_p: draw among the likeliest tokens that together hold this probability; 1: all
        (Holtzman et al. 2020).
      min_p: leave out tokens less likely than this share of the likeliest one; 0: none
        (Nguyen et al. 2024).
      repetition_penalty: divides the logits of tokens that stand in the text already, or multiplies
        them where they are negative (Keskar et al. 2019); 1: off.
    """

    temperature: jax.Array | float = 1.0
    top_k: jax.Array | int = 0
    top_p: jax.Array | float = 1.0
    min_p: jax.Array | float = 0.0
    repetition_penalty: jax.Array | float = 1.0

    def traced(self) -> "SamplingParams":
        """With arrays of one type each, so that no value compiles anew."""
        floats = (self.temperature, self.top_p, self.min_p, self.repetition_penalty)
        t, p, m, r = (jnp.float32(x) for x in floats)
        return SamplingParams(t, jnp.int32(self.top_k), p, m, r)


@flax.struct.dataclass
class DecodeState:
    """Where the loop stands.

    Attributes:
      t: int32 scalar, new tokens per row so far.
      done_N: rows that have ended.
      out_NT: the new tokens.
      logits_NV: of the next token.
      seen_NV: which tokens stand in a row's prompt or its new text.
      length_N: tokens of each prompt.
      cache: the model's.
    """

    t: jax.Array
    done_N: jax.Array
    out_NT: jax.Array
    logits_NV: jax.Array
    seen_NV: jax.Array
    length_N: jax.Array
    cache: Any


def decode(
    model: TextModel,
    variables: Any,
    key_N: jax.Array,
    tokens_NP: np.ndarray,
    length_N: np.ndarray,
    *,
    max_new_tokens: int,
    stops: Sequence[int] = (),
    choice: SamplingParams | None = None,
    watch: Watch | None = None,
) -> jax.Array:
    """New tokens (N, max_new_tokens), each row from its own key.

    Lengths of prompts and numbers of new tokens are padded to powers of two, so few lengths
    compile; everything else is traced. A row that has drawn one of `stops`, or that `watch` has
    ended, is filled up with the first of them.

    Args:
      model: its `context` bounds the cache; models that are not `bounded` go on past it, with a
        sliding window.
      variables: its parameters, as `apply` takes them.
      key_N: one random key per row.
      tokens_NP: int32 prompts, padded; see `pad_prompts`.
      length_N: tokens of each prompt, 1 to `context`.
      max_new_tokens: how many tokens to draw.
      stops: tokens that end a row.
      choice: how to draw; None: from the whole distribution.
      watch: looks at the new tokens after every few, to show them or to end rows.
    """
    longest = int(length_N.max())
    padded = min(bucket(longest), model.context)
    prompts_NP = np.zeros((len(length_N), padded), np.int32)
    prompts_NP[:, :longest] = tokens_NP[:, :longest]
    slots = min(bucket(longest + max_new_tokens), model.context)
    # Unused places of a fixed number: the stop tokens of another model compile nothing.
    stops_Z = np.full(max(8, len(stops)), -1, np.int32)
    stops_Z[: len(stops)] = stops
    size = bucket(max_new_tokens)
    state = _prefill(model, (slots, size), variables, prompts_NP, length_N, stops_Z)
    if dispatch.implementation("decoding") == "by_layer":
        variables, cache = _by_layer(model, variables, state.cache)
        state = state.replace(cache=cache)
    arguments = key_N, (choice or SamplingParams()).traced(), jnp.asarray(stops_Z)
    if watch is None:
        state = _loop(model, variables, state, *arguments, jnp.int32(max_new_tokens))
        return state.out_NT[:, :max_new_tokens]
    for upto in (*range(CALLBACK_EVERY, max_new_tokens, CALLBACK_EVERY), max_new_tokens):
        state = _loop(model, variables, state, *arguments, jnp.int32(upto))
        ended = watch(np.asarray(state.out_NT)[:, : int(state.t)])
        state = state.replace(done_N=state.done_N | jnp.asarray(ended))
        if bool(state.done_N.all()):
            break
    return state.out_NT[:, :max_new_tokens]


def pad_prompts(prompts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Prompts as arrays: int32 "tokens" (N, P), padded with 0, and "length" (N,)."""
    length_N = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens_NP = np.zeros((len(prompts), length_N.max()), np.int32)
    for row, prompt in zip(tokens_NP, prompts, strict=True):
        row[: len(prompt)] = prompt
    return {"tokens": tokens_NP, "length": length_N}


def bucket(n: int) -> int:
    """The smallest power of two that holds n."""
    return max(1 << max(n - 1, 0).bit_length(), SHORTEST)


@partial(jax.jit, static_argnums=(0, 1))
def _prefill(model, sizes, variables, prompts_NP, length_N, stops_Z):
    (slots, size), n = sizes, prompts_NP.shape[0]
    index = jnp.arange(prompts_NP.shape[1])
    position_NP = jnp.where(index < length_N[:, None], index, -1)
    x_NPW, cache = model.apply(
        variables, prompts_NP, position_NP, cache=model.init_cache(n, slots), method="hidden"
    )
    last_N1W = jnp.take_along_axis(x_NPW, (length_N - 1)[:, None, None], 1)
    logits_NV = model.apply(variables, last_N1W, method="logits")[:, 0]
    vocab = logits_NV.shape[-1]
    in_prompt = jnp.where(position_NP >= 0, prompts_NP, vocab)
    seen_NV = (
        jnp.zeros((n, vocab), bool).at[jnp.arange(n)[:, None], in_prompt].set(True, mode="drop")
    )
    filler = jnp.maximum(stops_Z[0], 0)
    return DecodeState(
        t=jnp.int32(0),
        done_N=jnp.zeros(n, bool),
        out_NT=jnp.full((n, size), filler, jnp.int32),
        logits_NV=logits_NV,
        seen_NV=seen_NV,
        length_N=length_N,
        cache=cache,
    )


@partial(jax.jit, static_argnums=0)
def _by_layer(model, variables, cache):
    return model.by_layer(variables, cache)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _loop(model, variables, state, key_N, choice, stops_Z, upto):
    n = key_N.shape[0]
    filler = jnp.maximum(stops_Z[0], 0)

    def going(s: DecodeState) -> jax.Array:
        return (s.t < upto) & ~s.done_N.all()

    def body(s: DecodeState) -> DecodeState:
        key = jax.vmap(jax.random.fold_in, (0, None))(key_N, s.t)
        token_N = jnp.where(s.done_N, filler, draw(key, s.logits_NV, s.seen_NV, choice))
        x_N1W, cache = model.apply(
            variables,
            token_N[:, None],
            (s.length_N + s.t)[:, None],
            cache=s.cache,
            method="hidden",
        )
        return s.replace(
            t=s.t + 1,
            done_N=s.done_N | (token_N[:, None] == stops_Z).any(-1),
            out_NT=s.out_NT.at[:, s.t].set(token_N),
            logits_NV=model.apply(variables, x_N1W, method="logits")[:, 0],
            seen_NV=s.seen_NV.at[jnp.arange(n), token_N].set(True),
            cache=cache,
        )

    return jax.lax.while_loop(going, body, state)


def draw(
    key_N: jax.Array, logits_NV: jax.Array, seen_NV: jax.Array, choice: SamplingParams
) -> jax.Array:
    """One token per row, int32; what is switched off costs nothing."""

    def penalise(logits):
        r = choice.repetition_penalty
        return jnp.where(seen_NV, jnp.where(logits > 0, logits / r, logits * r), logits)

    logits_NV = jax.lax.cond(choice.repetition_penalty != 1, penalise, lambda x: x, logits_NV)

    def drawn(logits):
        logits = logits / choice.temperature
        short = (choice.top_k > 0) | (choice.top_p < 1)
        logits = jax.lax.cond(short, lambda x: truncate(x, choice), lambda x: x, logits)
        floor = logits.max(-1, keepdims=True) + jnp.log(choice.min_p)
        logits = jnp.where(logits >= floor, logits, -jnp.inf)
        return jax.vmap(jax.random.categorical)(key_N, logits)

    warm = choice.temperature > 0
    token_N = jax.lax.cond(warm, drawn, lambda x: x.argmax(-1), logits_NV)
    return token_N.astype(jnp.int32)


def truncate(logits_NV: jax.Array, choice: SamplingParams) -> jax.Array:
    """−∞ for all but the top k and the nucleus of top p."""
    descending_NV = -jnp.sort(-logits_NV, axis=-1)
    vocab = logits_NV.shape[-1]
    k = jnp.where(choice.top_k > 0, jnp.minimum(choice.top_k, vocab), vocab)
    first_NV = jnp.arange(vocab) < k
    # The nucleus is of what the top k leave. Keep a token while the probability of those before it
    # is below top_p; the likeliest one always stays.
    probability_NV = jax.nn.softmax(jnp.where(first_NV, descending_NV, -jnp.inf), -1)
    before_NV = jnp.cumsum(probability_NV, -1) - probability_NV
    kept_NV = first_NV & ((before_NV < choice.top_p) | (jnp.arange(vocab) == 0))
    threshold_N1 = jnp.where(kept_NV, descending_NV, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits_NV >= threshold_N1, logits_NV, -jnp.inf)
