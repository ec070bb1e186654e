"""Autoregressive decoding from a KV cache, in one jitted loop.

Shapes: N sequences, P prompt tokens, T new tokens, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.models.transformer import Transformer


def decode(
    model: Transformer,
    params: Any,
    key_N: jax.Array,
    prompts_NP: np.ndarray,
    length_N: np.ndarray,
    *,
    max_new_tokens: int,
    stop: int = -1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """New tokens (N, max_new_tokens), each row from its own key.

    Prompts may differ in length: row n's is the first `length_N[n]` tokens of `prompts_NP[n]`.
    Prompt length and number of new tokens are padded to powers of two, so few lengths compile; all
    other options are traced. A row that has drawn `stop` is filled up with it.

    Args:
      model: the transformer; its `context` is the cache's size. Rotary models go on past it with a
        sliding window.
      params: its parameters.
      key_N: one random key per row.
      prompts_NP: int32, P ≤ context, at least one token each.
      length_N: int32 prompt lengths.
      max_new_tokens: how many tokens to draw.
      stop: the token that ends a row; −1: none.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw among the k likeliest; 0: all.
      top_p: draw among the likeliest tokens that together hold this probability; 1: all.
    """
    padded = min(_power_of_two(prompts_NP.shape[1]), model.context)
    prompts_NP = np.pad(prompts_NP, ((0, 0), (0, padded - prompts_NP.shape[1])))
    tokens = _decode(
        model,
        _power_of_two(max_new_tokens),
        params,
        key_N,
        jnp.asarray(prompts_NP),
        jnp.asarray(length_N),
        jnp.int32(max_new_tokens),
        jnp.int32(stop),
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
    )
    return tokens[:, :max_new_tokens]


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@partial(jax.jit, static_argnums=(0, 1))
def _decode(
    model, size, params, key_N, prompts_NP, length_N, count, stop, temperature, top_k, top_p
):
    n = prompts_NP.shape[0]
    variables = {"params": params}
    logits_NPV, cache = model.apply(variables, prompts_NP, cache=model.init_cache(n))
    logits_NV = jnp.take_along_axis(logits_NPV, (length_N - 1)[:, None, None], 1)[:, 0]
    out_NT = jnp.full((n, size), stop, jnp.int32)

    def going(carry):
        t, done_N = carry[0], carry[1]
        return (t < count) & ~done_N.all()

    def body(carry):
        t, done_N, out_NT, logits_NV, cache = carry
        key = jax.vmap(jax.random.fold_in, (0, None))(key_N, t)
        token_N = draw(key, logits_NV, temperature, top_k, top_p)
        token_N = jnp.where(done_N, stop, token_N)
        out_NT = out_NT.at[:, t].set(token_N)
        logits_N1V, cache = model.apply(
            variables, jnp.maximum(token_N, 0)[:, None], (length_N + t)[:, None], cache=cache
        )
        return t + 1, done_N | (token_N == stop), out_NT, logits_N1V[:, 0], cache

    carry = (jnp.int32(0), jnp.zeros(n, bool), out_NT, logits_NV, cache)
    return jax.lax.while_loop(going, body, carry)[2]


def draw(
    key_N: jax.Array,
    logits_NV: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
) -> jax.Array:
    """One token per row from the tempered and truncated distribution; all options are traced."""
    cold = temperature <= 0
    logits_NV = logits_NV / jnp.where(cold, 1.0, temperature)
    descending_NV = -jnp.sort(-logits_NV, axis=-1)
    vocab = logits_NV.shape[-1]
    k = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)
    # Nucleus: keep a token while the probability of those before it is below top_p. The likeliest
    # one always stays.
    probability_NV = jax.nn.softmax(descending_NV, -1)
    before_NV = jnp.cumsum(probability_NV, -1) - probability_NV
    kept_NV = (jnp.arange(vocab) < k) & ((before_NV < top_p) | (jnp.arange(vocab) == 0))
    threshold_N1 = jnp.where(kept_NV, descending_NV, jnp.inf).min(-1, keepdims=True)
    allowed_NV = jnp.where(logits_NV >= threshold_N1, logits_NV, -jnp.inf)
    drawn_N = jax.vmap(jax.random.categorical)(key_N, allowed_NV)
    return jnp.where(cold, logits_NV.argmax(-1), drawn_N).astype(jnp.int32)
