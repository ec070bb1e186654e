"""Drawing a token from its logits: temperature, truncation, repetition penalty.

Shapes: N rows, V vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Number = jax.Array | np.ndarray | float


@flax.struct.dataclass
class SamplingParams:
    """Sampling parameters: one number for all rows, or an array with one per row.

    Attributes:
      temperature: divides the logits; 0: greedy.
      top_k: draw among the k likeliest tokens; 0: all.
      top_p: draw among the likeliest tokens that together have this probability; 1: all
        (nucleus sampling, Holtzman et al. 2020).
      min_p: leave out tokens less likely than this share of the likeliest one; 0: none
        (Nguyen et al. 2024).
      repetition_penalty: divides the logits of tokens that are in the prompt or the new text, or
        multiplies them where they are negative (Keskar et al. 2019); 1: off.
    """

    temperature: Number = 1.0
    top_k: Number = 0
    top_p: Number = 1.0
    min_p: Number = 0.0
    repetition_penalty: Number = 1.0

    def as_arrays(self, rows: int) -> "SamplingParams":
        """One value per row (N,), int32 for `top_k` and float32 otherwise: no value recompiles."""

        def each(x: Number, dtype: jnp.dtype) -> jax.Array:
            return jnp.broadcast_to(jnp.asarray(x, dtype), (rows,))

        return SamplingParams(
            temperature=each(self.temperature, jnp.float32),
            top_k=each(self.top_k, jnp.int32),
            top_p=each(self.top_p, jnp.float32),
            min_p=each(self.min_p, jnp.float32),
            repetition_penalty=each(self.repetition_penalty, jnp.float32),
        )


def sample_tokens(
    key_N: jax.Array,
    logits_NV: jax.Array,
    seen_NV: jax.Array,
    params: SamplingParams,
    active_N: jax.Array | None = None,
) -> jax.Array:
    """One token per row, int32 (N,); a row depends on nothing of the others.

    What no active row uses costs nothing.

    Args:
      key_N: one random key per row.
      logits_NV: float32.
      seen_NV: tokens that the repetition penalty is for.
      params: from `as_arrays`.
      active_N: rows whose token is used; None: all.
    """

    def used(row_N: jax.Array) -> jax.Array:
        return (row_N if active_N is None else row_N & active_N).any()

    temperature_N, top_k_N, top_p_N, min_p_N, penalty_N = map(
        jnp.asarray,
        (
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
        ),
    )
    logits_NV = jax.lax.cond(
        used(penalty_N != 1),
        lambda logits: _penalise(logits, seen_NV, penalty_N),
        lambda logits: logits,
        logits_NV,
    )
    truncated_N = (top_k_N > 0) | (top_p_N < 1)

    def draw(logits: jax.Array) -> jax.Array:
        hot_N = temperature_N > 0
        scaled = logits / jnp.where(hot_N, temperature_N, 1)[:, None]
        scaled = jax.lax.cond(
            used(truncated_N & hot_N),
            lambda x: jnp.where(truncated_N[:, None], truncate(x, top_k_N, top_p_N), x),
            lambda x: x,
            scaled,
        )
        floor = scaled.max(-1, keepdims=True) + jnp.log(min_p_N)[:, None]
        kept = jnp.where(scaled >= floor, scaled, -jnp.inf)
        drawn_N = jax.vmap(jax.random.categorical)(key_N, kept)
        return jnp.where(hot_N, drawn_N, logits.argmax(-1))

    token_N = jax.lax.cond(used(temperature_N > 0), draw, lambda x: x.argmax(-1), logits_NV)
    return token_N.astype(jnp.int32)


def _penalise(logits_NV: jax.Array, seen_NV: jax.Array, penalty_N: jax.Array) -> jax.Array:
    r = penalty_N[:, None]
    penalised_NV = jnp.where(logits_NV > 0, logits_NV / r, logits_NV * r)
    return jnp.where(seen_NV, penalised_NV, logits_NV)


def truncate(logits_NV: jax.Array, top_k_N: jax.Array, top_p_N: jax.Array) -> jax.Array:
    """−∞ for all but the top k, and of these the nucleus of top p."""
    descending_NV = -jnp.sort(-logits_NV, axis=-1)
    vocab = logits_NV.shape[-1]
    k_N = jnp.where(top_k_N > 0, jnp.minimum(top_k_N, vocab), vocab)
    first_NV = jnp.arange(vocab) < k_N[:, None]
    # Keep a token while the probability of those before it is below top_p; the likeliest one
    # always stays.
    probability_NV = jax.nn.softmax(jnp.where(first_NV, descending_NV, -jnp.inf), -1)
    before_NV = jnp.cumsum(probability_NV, -1) - probability_NV
    kept_NV = first_NV & ((before_NV < top_p_N[:, None]) | (jnp.arange(vocab) == 0))
    threshold_N1 = jnp.where(kept_NV, descending_NV, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits_NV >= threshold_N1, logits_NV, -jnp.inf)
