"""Scaled dot-product attention.

Shapes: B batch, T queries, S keys, H query heads, K key heads (H = K · G), D head size.
"""

import math

import jax
import jax.numpy as jnp

from aigc_jax.ops import dispatch
from aigc_jax.ops.attention_blocks import MASKED, blockwise_attention
from aigc_jax.ops.attention_implementations import cudnn_attention, splash_attention
from aigc_jax.ops.attention_mask import AttentionMask

# Each returns None for arguments that it does not support.
FAST = {"blockwise": blockwise_attention, "cudnn": cudnn_attention, "splash": splash_attention}


def attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    mask: AttentionMask | None = None,
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """Returns softmax(scale · q kᵀ) v, (B, T, H, D); the softmax is in float32.

    Only the reference implementation supports forward-mode differentiation.

    Args:
      q_BTHD: queries.
      k_BSKD: keys; each serves H / K neighbouring query heads (Ainslie et al. 2023).
      v_BSKD: values.
      mask: by default every query attends to all keys. Rows without a visible key return
        unspecified values.
      scale: factor of the logits; 0: 1/√D.
      softcap: c bounds the logits as c · tanh(logits / c) (Gemma 2); 0 disables.
      dropout: one key per example, and the rate at which attention weights are dropped.
    """
    scale = scale or 1 / math.sqrt(q_BTHD.shape[-1])
    name = dispatch.implementation("attention")
    plain = softcap or dropout is not None or q_BTHD.shape[1] == 1  # one token: no memory to save
    if name in FAST and not plain:
        y = FAST[name](q_BTHD, k_BSKD, v_BSKD, mask, scale)
        if y is not None:
            dispatch.note_choice("attention", name)
            return y
    dispatch.note_choice("attention", "reference")
    mask_BTS = None if mask is None else mask.dense()
    return reference(q_BTHD, k_BSKD, v_BSKD, mask_BTS, scale, softcap, dropout)


def reference(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    mask_BTS: jax.Array | None,
    scale: float,
    softcap: float = 0.0,
    dropout: tuple[jax.Array, float] | None = None,
) -> jax.Array:
    """Computes `attention` by its formula, with all T × S logits at once."""
    b, t, h, d = q_BTHD.shape
    k = k_BSKD.shape[2]
    q = q_BTHD.reshape(b, t, k, h // k, d)
    logits = jnp.einsum("btkgd,bskd->bkgts", q, k_BSKD, preferred_element_type=jnp.float32)
    logits *= scale
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    if mask_BTS is not None:
        logits = jnp.where(mask_BTS[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, -1)
    if dropout is not None:
        key_B, rate = dropout
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, weights.shape[1:]))(key_B)
        weights = jnp.where(keep, weights / (1 - rate), 0)
    y = jnp.einsum("bkgts,bskd->btkgd", weights.astype(v_BSKD.dtype), v_BSKD)
    return y.reshape(b, t, h, d)
