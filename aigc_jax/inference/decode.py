"""Decoding a batch of prompts to its end: the engine with every slot filled once.

Shapes: N prompts, P prompt tokens, T new tokens.
"""

from collections.abc import Sequence

import jax
import numpy as np

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.request import TokenCallback
from aigc_jax.inference.decoder_network import DecoderNetwork, Variables
from aigc_jax.inference.engine import Engine
from aigc_jax.inference.sampling_params import SamplingParams

CALLBACK_EVERY = 8  # tokens between two calls of a token callback


def decode(
    network: DecoderNetwork,
    variables: Variables,
    key_N: jax.Array,
    token_NP: np.ndarray,
    length_N: np.ndarray,
    *,
    max_new_tokens: int,
    stops: Sequence[int] = (),
    sampling: SamplingParams | None = None,
    callback: TokenCallback | None = None,
    conditions: Conditions | None = None,
) -> jax.Array:
    """New tokens (N, max_new_tokens), each row from its own key.

    A row that has drawn one of `stops`, or that `callback` has ended, is padded with the first of
    them.

    Args:
      network: a causal text network.
      variables: its parameters.
      key_N: one random key per row.
      token_NP: int32 prompts, padded; see `pad_prompts`.
      length_N: tokens of each prompt, 1 to `network.context`.
      max_new_tokens: T.
      stops: tokens that end a row.
      sampling: how tokens are drawn; None: from the whole distribution.
      callback: called with all new tokens (N, t) after every `CALLBACK_EVERY`, and at the end;
        returns the rows to end, bool (N,).
      conditions: of the rows, for a network that has any.
    """
    rows = len(length_N)
    engine = Engine(
        network,
        variables,
        slots=rows,
        length=int(length_N.max()) + max_new_tokens,
        max_new_tokens=max_new_tokens,
        stops=stops,
    )
    prefix = engine.prefill(token_NP, length_N, conditions)
    state = engine.insert(
        prefix,
        None,
        np.arange(rows),
        key=key_N,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
    if callback is None:
        return engine.advance(state, max_new_tokens).token_NT[:, :max_new_tokens]
    done = False
    while not done:
        state = engine.advance(state, CALLBACK_EVERY)
        drawn = int(state.count_N.max())
        ended_N = callback(np.asarray(state.token_NT)[:, :drawn])
        state = engine.free(state, np.asarray(ended_N, bool))
        done = bool(state.done_N.all())
    return state.token_NT[:, :max_new_tokens]
