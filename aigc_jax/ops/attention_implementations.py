"""Attention without all T × S logits at once, for accelerators: by cuDNN, by a TPU kernel.

Each form is exact, and gives None for what it cannot do.
Shapes: B batch, T queries, S keys, H query heads, K key heads (H = K · G), D head size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from aigc_jax.distributed import logical_axes
from aigc_jax.ops.attention_mask import AttentionMask

LANES = 128  # of a TPU: what its kernel's lengths are multiples of


# cuDNN: an NVIDIA GPU -------------------------------------------------------------------------


def cudnn(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    sight: AttentionMask | None,
    scale: float,
) -> jax.Array | None:
    """Flash attention of cuDNN, in half precision; a description that it has no word for as a mask.

    JAX checks shapes, types, the GPU and the library's version when it traces the call; why it
    refuses is logged. Queries, keys and values must be split alike, which it would only find out
    when it compiles.
    """
    (_, t, _, d), s = q_BTHD.shape, k_BSKD.shape[1]
    if q_BTHD.dtype not in (jnp.bfloat16, jnp.float16) or d % 8 or t % 2 or s % 2:
        return None
    if logical_axes.num_shards("length") > 1 or k_BSKD.shape[2] % logical_axes.num_shards("kv"):
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
    except (NotImplementedError, RuntimeError, ValueError) as error:
        logging.log_first_n(logging.WARNING, "attention without cuDNN: %s", 1, error)
        return None


def _sees_all(sight: AttentionMask) -> bool:
    whole = sight.segments is None and not sight.causal
    return sight.ordered and whole and not sight.window and sight.reach is None


# Splash attention: a TPU ----------------------------------------------------------------------


def splash(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    sight: AttentionMask | None,
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
    if logical_axes.num_shards("length") > 1 or k_BSKD.shape[2] % logical_axes.num_shards("kv"):
        return None
    if jax.device_count() > 1 and not logical_axes.has_mesh() and not interpret:
        return None  # whose arrays may lie anywhere

    def part(q: jax.Array, k: jax.Array, v: jax.Array, *segments: jax.Array) -> jax.Array:
        kernel = _splash_kernel(sight, t, s, q.shape[2], interpret)
        q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))
        return jax.vmap(kernel)(q, k, v, *_segment_ids(segments)).swapaxes(1, 2)

    segments = () if sight is None else sight.segments or ()
    axes, keys = ("batch", None, "heads", None), ("batch", None, "kv", None)
    given = [(q_BTHD, axes), (k_BSKD, keys), (v_BSKD, keys)]
    given += [(x, ("batch", None)) for x in segments]
    return logical_axes.shard_map_over(part, given, axes).astype(v_BSKD.dtype)


def _segment_ids(segments: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    return (library.SegmentIds(*segments),) if segments else ()


def _splash_kernel(
    sight: AttentionMask | None, t: int, s: int, heads: int, interpret: bool
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
