"""The decoding engine: prefill prompts, insert them into slots, step all slots, free them.

The interface is JetStream's (Google 2024). Slots are rows of one compiled program; each has its own
position, limit, random key and sampling parameters, so requests come and go while others are being
written (continuous batching, Yu et al. 2022). A row's tokens depend on its own request only.

Shapes: N slots, R requests to insert, P prompt tokens, T new tokens that a slot holds, V
vocabulary, Z stop tokens.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.conditions import Conditions
from aigc_jax.inference.decode_state import DecodeState, Prefix, Requests
from aigc_jax.inference.decoder_network import DecoderNetwork, Variables
from aigc_jax.inference.prompts import bucket
from aigc_jax.inference.sampling_params import SamplingParams, sample_tokens
from aigc_jax.ops import dispatch

STOP_TOKENS = 8  # stop tokens are padded to as many, so that another model's compile nothing
NO_TOKEN = -1  # of a slot that has written nothing in a step; padding of stop tokens


class Engine:
    """Continuous batching of one network, as pure functions of a `DecodeState`.

    A state that is given to a method is consumed (its buffers are donated): use the one returned.
    Prompts are padded to powers of two, so few lengths compile; nothing else of a request does.

    Args:
      network: its `context` bounds the cache. Past the length of the cache the oldest tokens are
        forgotten: a sliding window.
      variables: of the network.
      slots: N.
      length: tokens that the cache of a slot holds, prompt and new ones; padded to a power of two,
        at most `network.context`.
      max_new_tokens: the most that a request may ask for; padded likewise.
      stops: tokens that end a row.
    """

    def __init__(
        self,
        network: DecoderNetwork,
        variables: Variables,
        *,
        slots: int,
        length: int,
        max_new_tokens: int,
        stops: Sequence[int] = (),
    ):
        self.network, self.slots = network, slots
        self.length, self.capacity = min(bucket(length), network.context), bucket(max_new_tokens)
        self._variables = self._per_layer = variables
        self._shape = (slots, self.length, self.capacity, False)
        if dispatch.implementation("decoding") == "by_layer":
            self._per_layer = _per_layer_variables(network, variables)
            self._shape = (slots, self.length, self.capacity, True)
        stop_Z = np.full(max(STOP_TOKENS, len(stops)), NO_TOKEN, np.int32)
        stop_Z[: len(stops)] = stops
        self._stop_Z = jnp.asarray(stop_Z)

    def init_state(self) -> DecodeState:
        """A state whose slots are all free."""
        return _init_state(self.network, self._shape, self._stop_Z)

    def prefill(
        self, token_RP: np.ndarray, length_R: np.ndarray, conditions: Conditions | None = None
    ) -> Prefix:
        """Reads R prompts.

        Args:
          token_RP: int32 prompts, padded at their ends.
          length_R: tokens of each, at least 1.
          conditions: of the R rows, for a network that has any.

        Raises:
          ValueError: if a prompt is empty or longer than a slot.
        """
        shortest, longest = int(length_R.min()), int(length_R.max())
        if shortest < 1 or longest > self.length:
            raise ValueError(
                f"prompts have {shortest} to {longest} tokens, but a slot takes 1 to {self.length}"
            )
        padded_RP = np.zeros((len(length_R), min(bucket(longest), self.length)), np.int32)
        padded_RP[:, :longest] = token_RP[:, :longest]
        return _prefill(self.network, self._variables, padded_RP, length_R, conditions)

    def insert(
        self,
        prefix: Prefix,
        state: DecodeState | None,
        slot: int | Sequence[int] | np.ndarray,
        *,
        key: jax.Array,
        max_new_tokens: int | np.ndarray,
        sampling: SamplingParams | None = None,
    ) -> DecodeState:
        """Puts the R rows of a prefix into slots, whatever was there.

        Args:
          prefix: from `prefill`.
          state: None: all slots are free.
          slot: the slot of each row; they differ.
          key: random key of each row (R,), or one key for one row.
          max_new_tokens: after how many each row ends, 1 to `max_new_tokens` of the engine.
          sampling: how tokens are drawn, for all rows or each; None: from the whole distribution.
        """
        slot_R = np.atleast_1d(np.asarray(slot, np.int32))
        rows = len(slot_R)
        # All of them in order: arrays are placed as a whole, which compiles faster than a scatter.
        everything = state is None and np.array_equal(slot_R, np.arange(self.slots))
        requests = Requests(
            key_R=jnp.reshape(key, (rows,)),
            limit_R=jnp.broadcast_to(jnp.asarray(max_new_tokens, jnp.int32), (rows,)),
            sampling=(sampling or SamplingParams()).as_arrays(rows),
        )
        at = None if everything else slot_R
        return _insert(self.network, self._shape, state, prefix, at, requests, self._stop_Z)

    def step(self, state: DecodeState) -> tuple[DecodeState, jax.Array]:
        """Writes one token in every slot that is not done.

        Returns:
          The state, and int32 tokens (N,), `NO_TOKEN` for slots that were done before.
        """
        return _step(self.network, self._per_layer, state, self._stop_Z)

    def advance(self, state: DecodeState, steps: int) -> DecodeState:
        """`step` up to `steps` times in one loop on the device; fewer if all slots are done."""
        return _advance(self.network, self._per_layer, state, self._stop_Z, np.int32(steps))

    def free(
        self, state: DecodeState, slot: int | Sequence[int] | np.ndarray | Sequence[bool]
    ) -> DecodeState:
        """Ends the rows in slots, given by their numbers or as a mask (N,)."""
        free_N, slot = np.zeros(self.slots, bool), np.asarray(slot)
        free_N[slot] = True
        return _free(state, free_N)


@partial(jax.jit, static_argnums=0)
def _per_layer_variables(network: DecoderNetwork, variables: Variables) -> Variables:
    return network.per_layer_variables(variables)


@partial(jax.jit, static_argnums=0)
def _prefill(
    network: DecoderNetwork,
    variables: Variables,
    token_RP: jax.Array,
    length_R: jax.Array,
    conditions: Conditions | None,
) -> Prefix:
    rows, length = token_RP.shape
    index_P = jnp.arange(length)
    position_RP = jnp.where(index_P < length_R[:, None], index_P, -1)
    cache = network.init_cache(rows, length)
    x_RPW, cache = network.extend(variables, token_RP, position_RP, cache, conditions)
    last_R1W = jnp.take_along_axis(x_RPW, (length_R - 1)[:, None, None], 1)
    logits_RV = network.vocab_logits(variables, last_R1W)[:, 0]
    vocab = logits_RV.shape[-1]
    real_RP = jnp.where(position_RP >= 0, token_RP, vocab)
    seen_RV = jnp.zeros((rows, vocab), bool)
    seen_RV = seen_RV.at[jnp.arange(rows)[:, None], real_RP].set(True, mode="drop")
    return Prefix(cache, logits_RV, seen_RV, length_R)


def _filler(stop_Z: jax.Array) -> jax.Array:
    """The padding behind the tokens of a row that has ended: the first stop token."""
    return jnp.maximum(stop_Z[0], 0)


def _free_slots(
    network: DecoderNetwork, shape: tuple[int, int, int, bool], stop_Z: jax.Array
) -> DecodeState:
    slots, length, capacity, per_layer = shape
    cache, zero_N = network.init_cache(slots, length), jnp.zeros(slots, jnp.int32)
    return DecodeState(
        position_N=zero_N,
        count_N=zero_N,
        limit_N=zero_N,
        done_N=jnp.ones(slots, bool),
        key_N=jax.random.split(jax.random.key(0), slots),
        sampling=SamplingParams().as_arrays(slots),
        token_NT=jnp.full((slots, capacity), _filler(stop_Z), jnp.int32),
        logits_NV=jnp.zeros((slots, network.vocab_size)),
        seen_NV=jnp.zeros((slots, network.vocab_size), bool),
        cache=network.per_layer_cache(cache) if per_layer else cache,
    )


@partial(jax.jit, static_argnums=(0, 1))
def _init_state(
    network: DecoderNetwork, shape: tuple[int, int, int, bool], stop_Z: jax.Array
) -> DecodeState:
    return _free_slots(network, shape, stop_Z)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _insert(
    network: DecoderNetwork,
    shape: tuple[int, int, int, bool],
    state: DecodeState | None,
    prefix: Prefix,
    slot_R: jax.Array | None,
    requests: Requests,
    stop_Z: jax.Array,
) -> DecodeState:
    if state is None:
        state = _free_slots(network, shape, stop_Z)

    row = slice(None) if slot_R is None else slot_R

    def put(old: jax.Array, new: Any) -> jax.Array:
        return old.at[row].set(new)

    return DecodeState(
        position_N=put(state.position_N, prefix.length_R),
        count_N=put(state.count_N, 0),
        limit_N=put(state.limit_N, jnp.minimum(requests.limit_R, state.token_NT.shape[1])),
        done_N=put(state.done_N, requests.limit_R < 1),
        key_N=put(state.key_N, requests.key_R),
        sampling=jax.tree.map(put, state.sampling, requests.sampling),
        token_NT=put(state.token_NT, _filler(stop_Z)),
        logits_NV=put(state.logits_NV, prefix.logits_RV),
        seen_NV=put(state.seen_NV, prefix.seen_RV),
        cache=network.insert_rows(state.cache, prefix.cache, slot_R),
    )


def _next(
    network: DecoderNetwork, variables: Variables, s: DecodeState, stop_Z: jax.Array
) -> tuple[DecodeState, jax.Array]:
    """One token for each row that is not done; rows that are keep all that they have."""
    active_N, row_N = ~s.done_N, jnp.arange(s.done_N.shape[0])
    key_N = jax.vmap(jax.random.fold_in)(s.key_N, s.count_N)
    drawn_N = sample_tokens(key_N, s.logits_NV, s.seen_NV, s.sampling, active_N)
    token_N = jnp.where(active_N, drawn_N, _filler(stop_Z))
    position_N = jnp.where(active_N, s.position_N, -1)
    x_N1W, cache = network.extend(variables, token_N[:, None], position_N[:, None], s.cache)
    count_N = s.count_N + active_N
    ended_N = (token_N[:, None] == stop_Z).any(-1) | (count_N >= s.limit_N)
    # Indices past the end are dropped: nothing is written for rows that are done.
    at_N = jnp.where(active_N, s.count_N, s.token_NT.shape[1])
    entry_N = jnp.where(active_N, token_N, s.seen_NV.shape[1])
    after = dataclasses.replace(
        s,
        position_N=s.position_N + active_N,
        count_N=count_N,
        done_N=s.done_N | ended_N,
        token_NT=s.token_NT.at[row_N, at_N].set(token_N, mode="drop"),
        logits_NV=network.vocab_logits(variables, x_N1W)[:, 0],
        seen_NV=s.seen_NV.at[row_N, entry_N].set(True, mode="drop"),
        cache=cache,
    )
    return after, jnp.where(active_N, token_N, NO_TOKEN)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _step(
    network: DecoderNetwork, variables: Variables, state: DecodeState, stop_Z: jax.Array
) -> tuple[DecodeState, jax.Array]:
    return _next(network, variables, state, stop_Z)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
    network: DecoderNetwork,
    variables: Variables,
    state: DecodeState,
    stop_Z: jax.Array,
    steps: jax.Array,
) -> DecodeState:
    def unfinished(carry: tuple[jax.Array, DecodeState]) -> jax.Array:
        return (carry[0] < steps) & ~carry[1].done_N.all()

    def body(carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
        return carry[0] + 1, _next(network, variables, carry[1], stop_Z)[0]

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


@partial(jax.jit, donate_argnums=0)
def _free(state: DecodeState, free_N: jax.Array) -> DecodeState:
    return dataclasses.replace(state, done_N=state.done_N | free_N)
