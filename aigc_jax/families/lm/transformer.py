"""A transformer over text: a decoder with a KV cache, or without the causal mask an encoder.

Shapes: B batch, T tokens, W width, V vocabulary, L layers, O outputs of a task.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.state import named_leaves
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.families.lm import kv_cache
from aigc_jax.families.lm.kv_cache import Cache
from aigc_jax.families.lm.layer_storage import LAYERS, apply_per_layer, per_layer_variables
from aigc_jax.families.lm.text_network import TextNetwork
from aigc_jax.nn.layers import Bias, Dropout, scan_unroll
from aigc_jax.nn.transformer_blocks import Block, linear, norm
from aigc_jax.nn.transformer_config import TransformerConfig
from aigc_jax.ops.activation import gelu_exact
from aigc_jax.ops.attention_mask import segment_positions

__all__ = ["Cache", "Transformer", "TransformerConfig"]

REMAT_POLICIES = {  # saved for the backward pass, beside each layer's input
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Transformer(TextNetwork):
    """Logits over a vocabulary; attributes and methods are those of `TextNetwork`."""

    config: TransformerConfig

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
            block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[c.remat])
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

    def features(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        cache: Cache | None = None,
        conditions: Conditions | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Features (B, T, W) for the heads, and the cache with these tokens in it; see the base."""
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
        x_BTW, cache = self.add_conditions(x_BTW, conditions, cache)
        if c.embedding_norm:
            x_BTW = self.embedding_norm(x_BTW)
        x_BTW = with_logical_constraint(
            self.embedding_dropout(x_BTW, key_B), "batch", "length", None
        )
        cache, context = kv_cache.attention_context(
            position_BT, segments_BT, key_B, cache, contiguous
        )
        if cache is not None and LAYERS in cache:
            block = Block(c, self.dtype, parent=None)
            x_BTW, layers = apply_per_layer(
                block, self.variables, x_BTW, cache[LAYERS], c.windows(), context
            )
            cache = {**cache, LAYERS: layers}
        else:
            kv = None if cache is None else kv_cache.of_layers(cache)
            each = (jnp.arange(c.layers), jnp.asarray(np.array(c.windows(), np.int32)))
            (x_BTW, kv), _ = self.layers((x_BTW, kv), each, context)
            if cache is not None and kv is not None:
                cache = {**cache, **kv}
        if c.norm_position != "post":
            x_BTW = self.final_norm(x_BTW)
        return x_BTW, cache

    def head(self, x_BTW: jax.Array) -> jax.Array:
        """Logits (…, V) of the next token, or of the masked one, in float32."""
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

    def task_outputs(self, x_BTW: jax.Array) -> jax.Array:
        """A task's outputs (…, O) in float32."""
        return self.task_head(x_BTW).astype(jnp.float32)

    @nn.nowrap
    def init_cache(self, batch: int, length: int = 0) -> Cache:
        """An empty cache of `batch` rows for `length` tokens, at most and by default `context`."""
        slots = min(length or self.context, self.context)
        cache = kv_cache.init_cache(self.config, batch, slots, self.dtype)
        return {**cache, **self.condition_cache(batch)}

    @nn.nowrap
    def insert_rows(self, cache: Cache, prefix: Cache, row_R: jax.Array | None) -> Cache:
        """The cache with rows replaced by those of another; see `DecoderNetwork`."""
        return kv_cache.insert_rows(cache, prefix, row_R)

    @nn.nowrap
    def per_layer_variables(self, variables: Any) -> Any:
        """Variables with each layer's arrays by themselves; see `DecoderNetwork`."""
        return per_layer_variables(variables, self.config.layers, self.dtype)

    @nn.nowrap
    def per_layer_cache(self, cache: Cache) -> Cache:
        """A cache with each layer's arrays by themselves."""
        return kv_cache.per_layer_cache(cache, self.config.layers)

    @nn.nowrap
    def decoding_bytes(self, variables: Any, batch: int, length: int) -> float:
        """The least bytes that a step of decoding reads; see the base."""
        lookup = {"position_embedding", "type_embedding"}
        if not self.config.tie_embeddings:
            lookup.add("token_embedding")
        leaves = named_leaves(variables)
        weights = sum(x.size for name, x in leaves if not lookup & {*name.split("/")})
        cache = jax.eval_shape(lambda: self.init_cache(batch, length))
        filled = sum(cache[name].size for name in ("k", "v")) / 2
        return float((weights + filled) * jnp.dtype(self.dtype).itemsize)
