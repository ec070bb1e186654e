"""Storage of layers: stacked along a leading axis for `nn.scan`, or each layer by itself.

A loop over stacked layers copies each layer's arrays out of the common ones every time it turns,
which costs more than the arithmetic when one token is decoded. So decoding runs the layers one by
one, each with arrays of its own.

Shapes: L layers, B batch, T tokens, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

LAYERS = "layers"  # the name of the stacked layers in each collection


def unstack_layers(tree: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """`{"layers": arrays (L, …)}` → `{"layers": {"0": arrays (…), "1": …}}`; the rest is kept."""
    if LAYERS not in tree:
        return dict(tree)
    stacked = tree[LAYERS]
    each = {str(i): jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(num_layers)}
    return {**tree, LAYERS: each}


def per_layer_variables(
    variables: Mapping[str, Mapping[str, Any]], num_layers: int, dtype: jnp.dtype
) -> dict[str, dict[str, Any]]:
    """Collections with unstacked layers, and matrices in `dtype`: each token reads all of them."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if x.ndim > 1 else x

    return {
        name: jax.tree.map(cast, unstack_layers(tree, num_layers))
        for name, tree in variables.items()
    }


def apply_per_layer(
    block: nn.Module,
    variables: Mapping[str, Mapping[str, Any]],
    x_BTW: jax.Array,
    caches: Sequence[dict[str, jax.Array]],
    windows: Sequence[int],
    context: Any,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], ...]]:
    """Runs the layers one by one, without a loop.

    Args:
      block: one layer, unbound.
      variables: from `per_layer_variables`.
      x_BTW: the first layer's inputs.
      caches: of each layer, stacked with a leading axis of 1.
      windows: attention window of each layer; 0: none.
      context: of the tokens, for every layer (`AttentionContext`).
    """
    collections = {name: tree[LAYERS] for name, tree in variables.items() if LAYERS in tree}
    after = []
    for i, (window, cache) in enumerate(zip(windows, caches, strict=True)):
        own = {name: layers[str(i)] for name, layers in collections.items()}
        (x_BTW, cache), _ = block.apply(own, (x_BTW, cache), (0, jnp.int32(window)), context)
        after.append(cache)
    return x_BTW, tuple(after)
