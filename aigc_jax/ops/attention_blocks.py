"""Blockwise attention for CPUs: blocks of the T × S logits that fit the caches.

Shapes: B batch, T queries (t of a block), S keys (s visible to a block), H query heads, K key
heads (H = K · G), D head size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.distributed import logical_axes
from aigc_jax.ops.attention_mask import AttentionMask

MASKED = -1e30  # finite: rows without a visible key must not become NaN
# Maximum logits computed at once; the backward pass has four arrays of that size.
FORWARD, BACKWARD = 1 << 20, 1 << 18
BLOCK, BLOCKS = 64, 8  # minimum queries of a block; blocks of a causal row
# Below this head size computing the weights twice, by queries and by keys, is faster than
# transposing them.
SMALL_HEAD = 48
FLOAT32 = dict(preferred_element_type=jnp.float32)


def blockwise_attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    mask: AttentionMask | None,
    scale: float,
) -> jax.Array:
    """Computes attention by blocks of examples and queries, against the keys visible to them.

    The backward pass does the same and recomputes the weights from each query's log Σ exp(logits)
    (Dao et al. 2022).
    """
    b, t, h, d = q_BTHD.shape
    k = k_BSKD.shape[2]
    q_BKGTD = (q_BTHD * scale).reshape(b, t, k, h // k, d).transpose(0, 2, 3, 1, 4)
    y = _blockwise(q_BKGTD, k_BSKD.swapaxes(1, 2), v_BSKD.swapaxes(1, 2), mask)
    return y.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)


@jax.custom_vjp
def _blockwise(q_BKGTD, k_BKSD, v_BKSD, mask):
    return _forward(q_BKGTD, k_BKSD, v_BKSD, mask)[0]


def _forward(q, k, v, mask):
    y, end = _by_groups(_forward_some, FORWARD, mask, q, k, v)
    return y, (q, k, v, mask, y, end)


def _backward(kept, grad):
    q, k, v, mask, y, end = kept
    # The softmax: dlogits = weights · (dweights − Σ weights · dweights); the sum is grad · y.
    inner = (grad.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)
    parts = _by_groups(_backward_some, BACKWARD, mask, q, k, v, end, inner, grad)
    return *parts, None


_blockwise.defvjp(_forward, _backward)


def _blocks(
    q: jax.Array, k: jax.Array, mask: AttentionMask | None, most: int
) -> list[tuple[slice, slice]]:
    """Returns (queries, visible keys) of each block, of at most `most` logits per example."""
    heads, queries, keys = math.prod(q.shape[1:3]), q.shape[3], k.shape[2]
    if mask is not None and mask.contiguous and mask.causal:
        size = -(-queries // (BLOCKS * BLOCK)) * BLOCK  # small blocks skip most masked keys
    else:
        size = most // (heads * keys) // BLOCK * BLOCK
    size = max(BLOCK, size)
    blocks = []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first, end = (0, keys) if mask is None else mask.key_range(start, stop)
        blocks.append((slice(start, stop), slice(first, end)))
    return blocks


def _by_groups(
    function: Callable[..., Any], most: int, mask: AttentionMask | None, *arrays: jax.Array
) -> Any:
    """Computes `function(blocks, mask, *arrays)` by groups of examples with at most `most` logits.

    The compiler can shard a batch, but not a loop over it: on several devices there is one group.
    """
    q, k = arrays[:2]
    batch, blocks = len(q), _blocks(q, k, mask, most)
    widest = max((t.stop - t.start) * (s.stop - s.start) for t, s in blocks)
    fitting = max(most // (math.prod(q.shape[1:3]) * widest), 1)
    size = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= fitting)
    alone = jax.device_count() == 1 or (
        logical_axes.has_mesh() and logical_axes.num_shards("batch") == 1
    )
    if size == batch or not alone:
        return function(blocks, mask, *arrays)
    leaves, treedef = jax.tree.flatten(mask)
    own = [i for i, leaf in enumerate(leaves) if leaf.ndim and len(leaf) == batch]

    def part(some: tuple[list[jax.Array], tuple[jax.Array, ...]]) -> Any:
        each = dict(zip(own, some[0], strict=True))
        chosen = [each.get(i, leaf) for i, leaf in enumerate(leaves)]
        return function(blocks, jax.tree.unflatten(treedef, chosen), *some[1])

    given = ([leaves[i] for i in own], arrays)
    parts = jax.tree.map(lambda x: x.reshape(batch // size, size, *x.shape[1:]), given)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), jax.lax.map(part, parts))


def _forward_some(blocks, mask, q, k, v):
    parts, ends = [], []
    for t, s in blocks:
        logits = _logits(q[:, :, :, t], k[:, :, s], mask, t, s)
        top = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = weights.sum(-1, keepdims=True)
        part = jnp.einsum("bkgts,bksd->bkgtd", weights.astype(v.dtype), v[:, :, s], **FLOAT32)
        parts.append((part / total).astype(v.dtype))
        ends.append(top + jnp.log(total))
    return jnp.concatenate(parts, 3), jnp.concatenate(ends, 3)


def _backward_some(blocks, mask, q, k, v, end, inner, grad):
    dq, dk, dv = [], jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    for t, s in blocks:
        q_t, grad_t, end_t, inner_t = (x[:, :, :, t] for x in (q, grad, end, inner))
        some_k, some_v = k[:, :, s], v[:, :, s]
        logits = _logits(q_t, some_k, mask, t, s)
        dweights = jnp.einsum("bkgtd,bksd->bkgts", grad_t, some_v, **FLOAT32)
        weights, dlogits = _slopes(logits, dweights, end_t, inner_t)
        dq.append(jnp.einsum("bkgts,bksd->bkgtd", dlogits.astype(q.dtype), some_k))
        axes = "bkgts"
        if q.shape[-1] < SMALL_HEAD:
            weights, dlogits = _slopes_by_keys(
                q_t, grad_t, end_t, inner_t, some_k, some_v, mask, t, s
            )
            axes = "bksgt"
        add = functools.partial(jnp.einsum, f"{axes},bkgtd->bksd", **FLOAT32)
        dk = dk.at[:, :, s].add(add(dlogits.astype(q.dtype), q_t))
        dv = dv.at[:, :, s].add(add(weights.astype(v.dtype), grad_t))
    return jnp.concatenate(dq, 3), dk.astype(k.dtype), dv.astype(v.dtype)


def _slopes(logits, dweights, end, inner):
    """Returns the attention weights and the gradients of their logits."""
    weights = jnp.exp(logits - end)
    return weights, weights * (dweights - inner)


def _slopes_by_keys(q, grad, end, inner, k, v, mask, t, s):
    """Recomputes `_slopes` with a row for each key: (B, K, s, G, t)."""
    axes = (0, 1, 4, 2, 3)  # (B, K, G, t, 1) → (B, K, 1, G, t)
    logits = jnp.einsum("bksd,bkgtd->bksgt", k, q, **FLOAT32)
    if mask is not None:
        seen = mask.dense(t, s).swapaxes(1, 2)[:, None, :, None]
        logits = jnp.where(seen, logits, MASKED)
    dweights = jnp.einsum("bksd,bkgtd->bksgt", v, grad, **FLOAT32)
    return _slopes(logits, dweights, end.transpose(axes), inner.transpose(axes))


def _logits(q_BKGtD: jax.Array, k_BKsD: jax.Array, mask: AttentionMask | None, t: slice, s: slice):
    """Returns the logits (B, K, G, t, s) float32 of a block of queries and keys."""
    logits = jnp.einsum("bkgtd,bksd->bkgts", q_BKGtD, k_BKsD, **FLOAT32)
    if mask is None:
        return logits
    return jnp.where(mask.dense(t, s)[:, None, None], logits, MASKED)
