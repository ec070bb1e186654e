"""Attention without all T × S logits at once: by blocks, by cuDNN, by a TPU kernel.

Each form is exact, and gives None for what it cannot do.
Shapes: B batch, T queries, S keys, H query heads, K key heads (H = K · G), D head size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.ops.sight import Sight
from aigc_jax.parallel import rules

MASKED = -1e30  # finite: a query that sees nothing gets numbers, not NaN
BLOCK, BLOCKS = 64, 8  # queries of a block at least, and blocks of a row at most
LANES = 128  # of a TPU: what its kernel's lengths are multiples of


# By blocks: a CPU -----------------------------------------------------------------------------


def blockwise(
    q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, sight: Sight | None, scale: float
) -> jax.Array:
    """Some queries after others, against the keys that they may see; so does the backward pass.

    It computes the weights again from each query's log Σ exp(logits) (Dao et al. 2022).
    """
    b, t, h, d = q_BTHD.shape
    k = k_BSKD.shape[2]
    q_BKGTD = (q_BTHD * scale).reshape(b, t, k, h // k, d).transpose(0, 2, 3, 1, 4)
    y = _blockwise(q_BKGTD, k_BSKD.swapaxes(1, 2), v_BSKD.swapaxes(1, 2), sight)
    return y.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d)


def _blocks(sight: Sight | None, queries: int, keys: int) -> list[tuple[slice, slice]]:
    """The queries of each block, and the keys that they may see."""
    size = max(BLOCK, -(-queries // (BLOCKS * BLOCK)) * BLOCK)
    blocks = []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first, end = (0, keys) if sight is None else sight.keys_of(start, stop)
        blocks.append((slice(start, stop), slice(first, end)))
    return blocks


def _logits(q_BKGtD: jax.Array, k_BKsD: jax.Array, sight: Sight | None, t: slice, s: slice):
    """(B, K, G, t, s) float32 of some queries and keys."""
    logits = jnp.einsum("bkgtd,bksd->bkgts", q_BKGtD, k_BKsD, preferred_element_type=jnp.float32)
    if sight is None:
        return logits
    return jnp.where(sight.mask_BTS(t, s)[:, None, None], logits, MASKED)


@jax.custom_vjp
def _blockwise(q_BKGTD, k_BKSD, v_BKSD, sight):
    return _forward(q_BKGTD, k_BKSD, v_BKSD, sight)[0]


def _forward(q, k, v, sight):
    parts, ends = [], []
    for t, s in _blocks(sight, q.shape[3], k.shape[2]):
        logits = _logits(q[:, :, :, t], k[:, :, s], sight, t, s)
        top = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - top)
        total = weights.sum(-1, keepdims=True)
        part = jnp.einsum(
            "bkgts,bksd->bkgtd",
            weights.astype(v.dtype),
            v[:, :, s],
            preferred_element_type=jnp.float32,
        )
        parts.append((part / total).astype(v.dtype))
        ends.append(top + jnp.log(total))
    y, end = jnp.concatenate(parts, 3), jnp.concatenate(ends, 3)
    return y, (q, k, v, sight, y, end)


def _backward(kept, grad):
    q, k, v, sight, y, end = kept
    # The softmax: dlogits = weights · (dweights − Σ weights · dweights); the sum is grad · y.
    inner = (grad.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)
    dq, dk, dv = [], jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    for t, s in _blocks(sight, q.shape[3], k.shape[2]):
        some_q, some_grad = q[:, :, :, t], grad[:, :, :, t]
        weights = jnp.exp(_logits(some_q, k[:, :, s], sight, t, s) - end[:, :, :, t])
        float32 = dict(preferred_element_type=jnp.float32)
        dweights = jnp.einsum("bkgtd,bksd->bkgts", some_grad, v[:, :, s], **float32)
        dlogits = (weights * (dweights - inner[:, :, :, t])).astype(q.dtype)
        weights = weights.astype(v.dtype)
        dq.append(jnp.einsum("bkgts,bksd->bkgtd", dlogits, k[:, :, s]))
        more_k = jnp.einsum("bkgts,bkgtd->bksd", dlogits, some_q, **float32)
        more_v = jnp.einsum("bkgts,bkgtd->bksd", weights, some_grad, **float32)
        dk, dv = dk.at[:, :, s].add(more_k), dv.at[:, :, s].add(more_v)
    return jnp.concatenate(dq, 3), dk.astype(k.dtype), dv.astype(v.dtype), None


_blockwise.defvjp(_forward, _backward)


# cuDNN: an NVIDIA GPU -------------------------------------------------------------------------


def cudnn(
    q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, sight: Sight | None, scale: float
) -> jax.Array | None:
    """Flash attention of cuDNN, in half precision; a description that it has no word for as a mask.

    JAX checks shapes, types, the GPU and the library's version when it traces the call.
    """
    (_, t, _, d), s = q_BTHD.shape, k_BSKD.shape[1]
    if q_BTHD.dtype not in (jnp.bfloat16, jnp.float16) or d % 8 or t % 2 or s % 2:
        return None
    given = {}
    if sight is not None:
        if sight.ordered and sight.segments is None and sight.reach is None and sight.causal:
            window = (sight.window - 1, 0) if sight.window else None
            given = dict(is_causal=True, local_window_size=window)
        elif not _sees_all(sight):
            mask = sight.mask_BTS()[:, None]
            given = dict(mask=jnp.broadcast_to(mask, (q_BTHD.shape[0], 1, t, s)))
    try:
        return jax.nn.dot_product_attention(
            q_BTHD, k_BSKD, v_BSKD, scale=scale, implementation="cudnn", **given
        )
    except (NotImplementedError, RuntimeError, ValueError):
        return None


def _sees_all(sight: Sight) -> bool:
    whole = sight.segments is None and not sight.causal
    return sight.ordered and whole and not sight.window and sight.reach is None


# Splash attention: a TPU ----------------------------------------------------------------------


def splash(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    sight: Sight | None,
    scale: float,
    interpret: bool = False,
) -> jax.Array | None:
    """The kernel of that name, for rows in order, with documents or without.

    XLA cannot split a kernel among devices, so each runs it on its own rows and heads; where texts
    are split too (`sequence` in mesh) there is none.
    """
    (_, t, _, d), s = q_BTHD.shape, k_BSKD.shape[1]
    known = sight is None or (sight.ordered and sight.reach is None)
    if not known or t % LANES or s % LANES or d % (LANES // 2):
        return None
    if rules.sharers("length") > 1 or k_BSKD.shape[2] % rules.sharers("kv"):
        return None
    if jax.device_count() > 1 and not rules.meshed() and not interpret:
        return None  # whose arrays may lie anywhere

    def part(q: jax.Array, k: jax.Array, v: jax.Array, *segments: jax.Array) -> jax.Array:
        kernel = _splash_kernel(sight, t, s, q.shape[2], interpret)
        q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))
        return jax.vmap(kernel)(q, k, v, *_segment_ids(segments)).swapaxes(1, 2)

    segments = () if sight is None else sight.segments or ()
    axes, keys = ("batch", None, "heads", None), ("batch", None, "kv", None)
    given = [(q_BTHD, axes), (k_BSKD, keys), (v_BSKD, keys)]
    given += [(x, ("batch", None)) for x in segments]
    return rules.apart(part, given, axes).astype(v_BSKD.dtype)


def _segment_ids(segments: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    return (library.SegmentIds(*segments),) if segments else ()


def _splash_kernel(
    sight: Sight | None, t: int, s: int, heads: int, interpret: bool
) -> Callable[..., jax.Array]:
    """The kernel for one example: (H, T, D), (K, S, D), (K, S, D) → (H, T, D)."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    if sight is None or not (sight.causal or sight.window):
        mask = library.FullMask((t, s))
    elif sight.window:
        mask = library.LocalMask(
            (t, s), (sight.window - 1, 0 if sight.causal else sight.window - 1), 0
        )
    else:
        mask = library.CausalMask((t, s))
    size = next(n for n in (512, 256, LANES) if t % n == 0 and s % n == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes = library.BlockSizes(**{f"block_{name}": size for name in names})
    return library.make_splash_mha(
        library.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
        interpret=interpret,
    )  # fmt: skip
