"""A transformer over text: a decoder with a KV cache, or without the causal mask an encoder.

Shapes: B batch, T tokens, S cache slots, K key heads, D head size, W width, V vocabulary, L layers,
O outputs of a task.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import Bias, Dropout, scan_unroll
from aigc_jax.nn.transformer_blocks import AttentionContext, Block, Cache, linear, norm
from aigc_jax.nn.transformer_config import TransformerConfig
from aigc_jax.ops.activation import gelu_exact
from aigc_jax.ops.attention_mask import segment_positions

__all__ = ["Cache", "Transformer", "TransformerConfig"]

POLICIES = {  # what is kept for the backward pass, beside each layer's input
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Transformer(nn.Module):
    """Logits over a vocabulary.

    Attributes:
      config: sizes and choices.
      vocab_size: V.
      context: tokens of the longest text (`config.bounded`), and the most that a cache holds.
      dtype: of the computation; parameters and logits are float32.
      num_outputs: O, of a task's head beside the vocabulary's; 0: none.
    """

    config: TransformerConfig
    vocab_size: int
    context: int
    dtype: jnp.dtype = jnp.float32
    num_outputs: int = 0

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.embedding_std or c.init_std or 0.02)

        def embed(entries: int, axis: str) -> nn.Embed:
            boxed = nn.with_logical_partitioning(init, (axis, "embed"))
            return nn.Embed(entries, c.width, embedding_init=boxed, dtype=self.dtype)

        self.token_embedding = embed(self.vocab_size, "vocab")
        if c.positions == "learned":
            self.position_embedding = embed(self.context, "position")
        if c.token_types:
            self.type_embedding = embed(c.token_types, "classes")
        if c.embedding_norm:
            self.embedding_norm = norm(c, self.dtype)
        self.embedding_dropout = Dropout(c.dropout)
        block = Block
        if c.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=POLICIES[c.remat])
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            metadata_params={nn.PARTITION_NAME: "layers"},
            in_axes=(0, nn.broadcast),
            length=c.layers,
            unroll=scan_unroll(c.scan_unroll, c.layers),
        )(c, self.dtype)
        if c.norm_position != "post":
            self.final_norm = norm(c, self.dtype)
        if c.head_transform:
            axes = ("embed", "mlp")
            self.head_transform = linear(c, self.dtype, "head", c.width, True, kernel_axes=axes)
            self.head_norm = norm(c, self.dtype)
        if not c.tie_embeddings:
            axes = ("embed", "vocab")
            self.head_embedding = linear(
                c, self.dtype, "vocabulary", self.vocab_size, False, kernel_axes=axes
            )
        if c.head_bias:
            self.head_bias = Bias(("vocab",))
        if self.num_outputs:
            axes = ("embed", "outputs")
            self.task_head = linear(c, self.dtype, "head", self.num_outputs, True, kernel_axes=axes)

    def __call__(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits (B, T, V) in float32, and the cache with these tokens in it; see `hidden`."""
        x_BTW, cache = self.hidden(token_BT, position_BT, segments_BT, key_B, cache)
        if self.is_initializing() and self.num_outputs:
            self.task_logits(x_BTW)
        return self.logits(x_BTW), cache

    def hidden(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """What the heads read, (B, T, W), and the cache with these tokens in it.

        Args:
          token_BT: int32 tokens.
          position_BT: their positions, −1 for padding; 0…T−1 if left out, or counted within each
            document.
          segments_BT: documents packed side by side, which do not see each other; 0: padding.
          key_B: dropout keys; none: no dropout.
          cache: keys and values of earlier tokens, from `init_cache`; none: the tokens attend to
            themselves only.
        """
        c = self.config
        contiguous = position_BT is None and cache is None
        if position_BT is None:
            position_BT = jnp.arange(token_BT.shape[1])[None]
            if segments_BT is not None:
                position_BT = segment_positions(segments_BT)
        x_BTW = self.token_embedding(token_BT) * c.embedding_scale
        if c.positions == "learned":
            x_BTW += self.position_embedding(jnp.maximum(position_BT, 0))
        if c.token_types:
            x_BTW += self.type_embedding(jnp.zeros_like(token_BT))
        if c.embedding_norm:
            x_BTW = self.embedding_norm(x_BTW)
        x_BTW = with_logical_constraint(
            self.embedding_dropout(x_BTW, key_B), "batch", "length", None
        )
        cache, context = _attention_context(position_BT, segments_BT, key_B, cache, contiguous)
        if cache is not None and "layers" in cache:
            x_BTW, kv = self._one_by_one(x_BTW, cache["layers"], context)
        else:
            kv = None if cache is None else _of_layers(cache)
            each = (jnp.arange(c.layers), jnp.asarray(np.array(c.windows(), np.int32)))
            (x_BTW, kv), _ = self.layers((x_BTW, kv), each, context)
        if c.norm_position != "post":
            x_BTW = self.final_norm(x_BTW)
        return x_BTW, None if cache is None else {**cache, **kv}

    def _one_by_one(
        self, x_BTW: jax.Array, caches: tuple[Cache, ...], context: AttentionContext
    ) -> tuple[jax.Array, Cache]:
        """All layers, without a loop, out of what `by_layer` has made."""
        block, after = Block(self.config, self.dtype, parent=None), []
        kinds = {kind: tree for kind, tree in self.variables.items() if "layers" in tree}
        for i, (window, kv) in enumerate(zip(self.config.windows(), caches, strict=True)):
            own = {kind: tree["layers"][str(i)] for kind, tree in kinds.items()}
            (x_BTW, kv), _ = block.apply(own, (x_BTW, kv), (0, jnp.int32(window)), context)
            after.append(kv)
        return x_BTW, {"layers": tuple(after)}

    def logits(self, x_BTW: jax.Array) -> jax.Array:
        """Of the next token, or of the masked one: (…, V) in float32."""
        c = self.config
        if c.head_transform:
            x_BTW = self.head_norm(gelu_exact(self.head_transform(x_BTW)))
        if c.tie_embeddings:
            logits_BTV = self.token_embedding.attend(x_BTW)
        else:
            logits_BTV = self.head_embedding(x_BTW)
        logits_BTV = logits_BTV.astype(jnp.float32)
        if logits_BTV.ndim == 3:
            logits_BTV = with_logical_constraint(logits_BTV, "batch", "length", "vocab")
        if c.head_bias:
            logits_BTV = self.head_bias(logits_BTV)
        if c.logit_scale != 1:
            logits_BTV *= c.logit_scale
        if c.logit_softcap:
            logits_BTV = c.logit_softcap * jnp.tanh(logits_BTV / c.logit_softcap)
        return logits_BTV

    def task_logits(self, x_BTW: jax.Array) -> jax.Array:
        """A task's outputs (…, O) in float32."""
        return self.task_head(x_BTW).astype(jnp.float32)

    def init_cache(self, batch: int, slots: int = 0) -> Cache:
        """An empty cache of so many slots, at most and by default `context`."""
        c, slots = self.config, min(slots or self.context, self.context)
        shape = (c.layers, batch, c.key_heads, slots, c.head_size)
        kv = {"k": jnp.zeros(shape, self.dtype), "v": jnp.zeros(shape, self.dtype)}
        if c.conv_width > 1:
            last = jnp.zeros((c.layers, batch, c.conv_width - 1, c.width), self.dtype)
            kv |= {"attention_conv": last, "mlp_conv": last}
        return {**kv, "position": jnp.full((batch, slots), -1, jnp.int32)}

    def by_layer(self, variables: Any, cache: Cache) -> tuple[Any, Cache]:
        """Variables and cache with each layer's arrays by themselves, for `hidden`.

        A loop over layers copies what it takes out of their common arrays, each time it turns. And
        matrices in the type that is computed in: each token reads all of them.
        """
        layers = range(self.config.layers)

        def cast(x: jax.Array) -> jax.Array:
            return x.astype(self.dtype) if x.ndim > 1 else x

        def apart(tree: Any) -> Any:
            if "layers" not in tree:
                return tree
            each = {str(i): jax.tree.map(lambda x, i=i: x[i], tree["layers"]) for i in layers}
            return {**tree, "layers": each}

        caches = tuple({k: x[i : i + 1] for k, x in _of_layers(cache).items()} for i in layers)
        variables = {kind: jax.tree.map(cast, apart(tree)) for kind, tree in variables.items()}
        return variables, {"position": cache["position"], "layers": caches}


def _of_layers(cache: Cache) -> Cache:
    """What each layer has its own of."""
    return {name: x for name, x in cache.items() if name != "position"}


def _attention_context(
    position_BT: jax.Array,
    segments_BT: jax.Array | None,
    key_B: jax.Array | None,
    cache: Cache | None,
    contiguous: bool,
) -> tuple[Cache | None, AttentionContext]:
    """The cache with the tokens' positions in it, and where they stand."""
    if cache is None:
        segments = None if segments_BT is None else (segments_BT, segments_BT)
        return None, AttentionContext(position_BT, position_BT, segments, None, key_B, contiguous)
    batch, slots = cache["position"].shape
    position_BT = jnp.broadcast_to(position_BT, (batch, position_BT.shape[1]))
    # A ring: past the last slot the oldest key is overwritten.
    slot_BT = jnp.where(position_BT >= 0, position_BT % slots, slots)
    at = (jnp.arange(batch)[:, None], slot_BT)
    held = cache["position"].at[at].set(position_BT, mode="drop")
    return {**cache, "position": held}, AttentionContext(position_BT, held, None, slot_BT, key_B)
