"""Attention for accelerators without materialising T × S logits: cuDNN and a TPU kernel.

Each implementation is exact, and returns None for arguments that it does not support.
Shapes: B batch, T queries, S keys, H query heads, K key heads (H = K · G), D head size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from aigc_jax.distributed import logical_axes
from aigc_jax.ops.attention_mask import AttentionMask

LANES = 128  # TPU lanes; lengths must be multiples of it


# cuDNN: an NVIDIA GPU -------------------------------------------------------------------------


def cudnn_attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    mask: AttentionMask | None,
    scale: float,
) -> jax.Array | None:
    """Computes flash attention with cuDNN in half precision.

    Masks that cuDNN cannot express natively are passed as dense masks. JAX checks shapes, types,
    the GPU and the library's version when it traces the call; if it rejects them, that is logged.
    Queries, keys and values must be sharded alike, which is checked here because JAX would only
    fail at compilation.
    """
    (_, t, _, d), s = q_BTHD.shape, k_BSKD.shape[1]
    if q_BTHD.dtype not in (jnp.bfloat16, jnp.float16) or d % 8 or t % 2 or s % 2:
        return None
    if logical_axes.num_shards("length") > 1 or k_BSKD.shape[2] % logical_axes.num_shards("kv"):
        return None
    given: dict[str, Any] = {}
    if mask is not None:
        if (
            mask.contiguous
            and mask.segments is None
            and mask.dynamic_window is None
            and mask.causal
        ):
            window = (mask.window - 1, 0) if mask.window else None
            given = dict(is_causal=True, local_window_size=window)
        elif not _sees_all(mask):
            shape = (q_BTHD.shape[0], 1, t, s)
            given = dict(mask=jnp.broadcast_to(mask.dense()[:, None], shape))
    try:
        return jax.nn.dot_product_attention(
            q_BTHD, k_BSKD, v_BSKD, scale=scale, implementation="cudnn", **given
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        logging.log_first_n(logging.WARNING, "attention without cuDNN: %s", 1, error)
        return None


def _sees_all(mask: AttentionMask) -> bool:
    dense = mask.segments is None and not mask.causal
    return mask.contiguous and dense and not mask.window and mask.dynamic_window is None


# Splash attention: a TPU ----------------------------------------------------------------------


def splash_attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    mask: AttentionMask | None,
    scale: float,
    interpret: bool = False,
) -> jax.Array | None:
    """Computes splash attention, a Pallas kernel for TPUs, for contiguous rows or segments.

    XLA cannot partition a kernel, so each device runs it on its own rows and heads; it is not used
    where sequences are sharded too (`sequence` in mesh).
    """
    (_, t, _, d), s = q_BTHD.shape, k_BSKD.shape[1]
    known = mask is None or (mask.contiguous and mask.dynamic_window is None)
    if not known or t % LANES or s % LANES or d % (LANES // 2):
        return None
    if logical_axes.num_shards("length") > 1 or k_BSKD.shape[2] % logical_axes.num_shards("kv"):
        return None
    if jax.device_count() > 1 and not logical_axes.has_mesh() and not interpret:
        return None  # the sharding of the arrays is not known

    def part(q: jax.Array, k: jax.Array, v: jax.Array, *segments: jax.Array) -> jax.Array:
        kernel = _splash_kernel(mask, t, s, q.shape[2], interpret)
        q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))
        return jax.vmap(kernel)(q, k, v, *_segment_ids(segments)).swapaxes(1, 2)

    segments = () if mask is None else mask.segments or ()
    axes, keys = ("batch", None, "heads", None), ("batch", None, "kv", None)
    given: list[tuple[jax.Array, logical_axes.Axes]] = [
        (q_BTHD, axes),
        (k_BSKD, keys),
        (v_BSKD, keys),
    ]
    given += [(x, ("batch", None)) for x in segments]
    return logical_axes.shard_map_over(part, given, axes).astype(v_BSKD.dtype)


def _segment_ids(segments: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    return (library.SegmentIds(*segments),) if segments else ()


def _splash_kernel(
    mask: AttentionMask | None, t: int, s: int, heads: int, interpret: bool
) -> Callable[..., jax.Array]:
    """Returns the kernel for one example: (H, T, D), (K, S, D), (K, S, D) → (H, T, D)."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    kernel_mask: Any
    if mask is None or not (mask.causal or mask.window):
        kernel_mask = library.FullMask((t, s))
    elif mask.window:
        kernel_mask = library.LocalMask(
            (t, s), (mask.window - 1, 0 if mask.causal else mask.window - 1), 0
        )
    else:
        kernel_mask = library.CausalMask((t, s))
    size = next(n for n in (512, 256, LANES) if t % n == 0 and s % n == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": size for name in names}
    return library.make_splash_mha(
        library.MultiHeadMask([kernel_mask] * heads),
        block_sizes=library.BlockSizes(**blocks),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
