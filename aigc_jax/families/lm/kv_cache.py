"""The transformer's cache: keys and values of earlier tokens, in a ring of slots per row.

"k", "v" (L, B, K, S, D); "position" (B, S), −1: empty; the last inputs of short convolutions
"attention_conv", "mlp_conv" (L, B, conv_width − 1, W), if there are any; "condition" (B, W), if
there are conditions. Per layer, what begins with L is `{"layers": ({"k": (1, B, K, S, D), …}, …)}`.

Shapes: L layers, B rows, T tokens, S cache slots, K key heads, D head size, R rows to insert.
"""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.families.lm.layer_storage import LAYERS
from aigc_jax.families.lm.text_network import CONDITION
from aigc_jax.nn.transformer_blocks import AttentionContext
from aigc_jax.nn.transformer_config import TransformerConfig

Cache = dict[str, Any]

SHARED = ("position", CONDITION)  # entries that layers share; their rows are axis 0, not 1


def init_cache(config: TransformerConfig, batch: int, slots: int, dtype: jnp.dtype) -> Cache:
    """An empty cache of `batch` rows with `slots` slots each, without conditions."""
    c = config
    shape = (c.layers, batch, c.key_heads, slots, c.head_size)
    cache = {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
    if c.conv_width > 1:
        last = jnp.zeros((c.layers, batch, c.conv_width - 1, c.width), dtype)
        cache |= {"attention_conv": last, "mlp_conv": last}
    return {**cache, "position": jnp.full((batch, slots), -1, jnp.int32)}


def of_layers(cache: Cache) -> Cache:
    """The entries of which each layer has its own."""
    return {name: x for name, x in cache.items() if name not in SHARED}


def per_layer_cache(cache: Cache, num_layers: int) -> Cache:
    """A cache with each layer's arrays by themselves."""
    shared = {name: x for name, x in cache.items() if name in SHARED}
    stacked = of_layers(cache)
    each = tuple({k: x[i : i + 1] for k, x in stacked.items()} for i in range(num_layers))
    return {**shared, LAYERS: each}


def insert_rows(cache: Cache, prefix: Cache, row_R: jax.Array | None) -> Cache:
    """The cache with rows `row_R` replaced by the R rows of `prefix`, which has as many slots or
    fewer and holds positions 0, 1, … in order; the other slots of these rows become empty.

    Args:
      cache: stacked or per layer.
      prefix: stacked.
      row_R: rows of `cache`; None: all of them, in order.
    """
    slots = cache["position"].shape[1]
    empty = slots - prefix["position"].shape[1]
    position_RS = jnp.pad(prefix["position"], ((0, 0), (0, empty)), constant_values=-1)

    def padded(layers: Cache) -> Cache:
        widths = ((0, 0), (0, 0), (0, 0), (0, empty), (0, 0))
        return {k: jnp.pad(x, widths) if k in ("k", "v") else x for k, x in layers.items()}

    def put(old: Cache, new: Cache) -> Cache:
        if row_R is None:
            return {k: new[k].astype(x.dtype) for k, x in old.items()}
        return {k: x.at[:, row_R].set(new[k].astype(x.dtype)) for k, x in old.items()}

    row = slice(None) if row_R is None else row_R
    after = {"position": cache["position"].at[row].set(position_RS)}
    if CONDITION in cache:
        after[CONDITION] = cache[CONDITION].at[row].set(prefix[CONDITION])
    if LAYERS not in cache:
        return {**after, **put(of_layers(cache), padded(of_layers(prefix)))}
    each = per_layer_cache(prefix, len(cache[LAYERS]))[LAYERS]
    layers = zip(cache[LAYERS], each, strict=True)
    return {**after, LAYERS: tuple(put(old, padded(new)) for old, new in layers)}


def attention_context(
    position_BT: jax.Array,
    segments_BT: jax.Array | None,
    key_B: jax.Array | None,
    cache: Cache | None,
    contiguous: bool,
) -> tuple[Cache | None, AttentionContext]:
    """The cache with the tokens' positions in it, and what attention needs to know of the tokens.

    Args:
      position_BT: positions of the tokens; −1: padding.
      segments_BT: their documents, without a cache only; None: one.
      key_B: dropout keys; None: no dropout.
      cache: None: the tokens attend to each other.
      contiguous: see `AttentionContext`.
    """
    if cache is None:
        segments = None if segments_BT is None else (segments_BT, segments_BT)
        return None, AttentionContext(position_BT, position_BT, segments, None, key_B, contiguous)
    batch, slots = cache["position"].shape
    position_BT = jnp.broadcast_to(position_BT, (batch, position_BT.shape[1]))
    # A ring: past the last slot the oldest key is overwritten.
    slot_BT = jnp.where(position_BT >= 0, position_BT % slots, slots)
    at = (jnp.arange(batch)[:, None], slot_BT)
    position_BS = cache["position"].at[at].set(position_BT, mode="drop")
    cache = {**cache, "position": position_BS}
    return cache, AttentionContext(position_BT, position_BS, None, slot_BT, key_B)
