"""Transformer block: attention and MLP, each with a residual connection.

Shapes: B batch, T tokens, S cache slots, H query heads, K key heads, D head size, W width, L
layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import Dropout, Linear, Lora, Norm
from aigc_jax.nn.transformer_config import TransformerConfig
from aigc_jax.ops.activation import ACTIVATIONS
from aigc_jax.ops.attention import attention
from aigc_jax.ops.attention_mask import AttentionMask
from aigc_jax.ops.rope import rotary_frequencies, rotate

Cache = dict[str, jax.Array]  # KV cache of all layers: see families/lm/kv_cache.py


@flax.struct.dataclass
class AttentionContext:
    """Positions, segments and cache slots of the tokens, shared by all layers.

    Attributes:
      position_BT: positions of the tokens, the queries; −1 for padding.
      key_position_BS: positions of the keys: the tokens themselves, or the cache's slots.
      segment_ids: document ids of queries (B, T) and keys (B, S); None for a single document.
      slot_BT: cache slots of the tokens; S for padding, which is not cached; None without a cache.
      dropout_key_B: dropout keys; None disables dropout.
      contiguous: whether the keys are the tokens themselves, one document after another with
        ascending positions; see `AttentionMask`.
    """

    position_BT: jax.Array
    key_position_BS: jax.Array
    segment_ids: tuple[jax.Array, jax.Array] | None
    slot_BT: jax.Array | None
    dropout_key_B: jax.Array | None
    contiguous: bool = flax.struct.field(pytree_node=False, default=False)

    def mask(self, c: TransformerConfig, window: jax.Array) -> AttentionMask:
        """Returns the attention mask of a layer.

        Args:
          c: config of the transformer.
          window: positions that a token attends to, including itself; 0 disables. Ignored if all
            layers have the same window, which is then static.
        """
        same = c.common_window
        span = dict(dynamic_window=window) if same is None else dict(window=same)
        return AttentionMask(
            self.position_BT,
            self.key_position_BS,
            self.segment_ids,
            c.causal,
            contiguous=self.contiguous,
            **span,
        )


def linear(
    c: TransformerConfig, dtype: jnp.dtype, target: str, features: int, bias: bool, **kw: Any
) -> Linear:
    """Returns a projection, with a low-rank adapter if the config has one for this target.

    Args:
      c: config of the transformer.
      dtype: dtype of the computation.
      target: one of `PROJECTIONS`, such as "query" or "in", or "head" or "vocabulary".
      features: output size.
      bias: whether there is a bias.
      **kw: further attributes of `Linear`.
    """
    std, last = c.init_std, target in ("out", "down")
    init = nn.initializers.normal(std) if std else nn.initializers.lecun_normal()
    if last:  # GPT-2: keeps the variance of the sum of 2L branches
        scaled = nn.initializers.variance_scaling(0.5 / c.layers, "fan_in", "truncated_normal")
        init = nn.initializers.normal(std / (2 * c.layers) ** 0.5) if std else scaled
    if c.zero_init and (last or target == "vocabulary"):
        init = nn.initializers.zeros
    lora = None
    if c.lora_rank and target in c.lora_targets:
        lora = Lora(c.lora_rank, c.lora_alpha, c.lora_dropout)
    return Linear(features, bias, init, dtype, lora=lora, **kw)


def norm(c: TransformerConfig, dtype: jnp.dtype, **kw: Any) -> Norm:
    """Returns the config's norm."""
    return Norm(c.norm, c.norm_eps, c.norm_bias, c.norm_offset, dtype, c.norm_scale, **kw)


class ShortConv(nn.Module):
    """Causal depthwise convolution with a residual connection; the kernel is initially zero.

    Attributes:
      width: width of the kernel in tokens, including the current one.
    """

    width: int

    @nn.compact
    def __call__(
        self, x_BTW: jax.Array, position_BT: jax.Array, before: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the outputs, and the last inputs (B, width − 1, W) for the next call.

        Args:
          x_BTW: inputs; padding only at the end of a row.
          position_BT: positions within a document, beyond whose start the kernel does not reach;
            −1 for padding.
          before: inputs of the preceding tokens; None at the start.
        """
        batch, length, features = x_BTW.shape
        shape = (self.width, features)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("position", "norm"))
        kernel: Any = self.param("taps", init, shape)
        taps = kernel.astype(x_BTW.dtype)
        if before is None:
            before = jnp.zeros((batch, self.width - 1, features), x_BTW.dtype)
        all_BSW = jnp.concatenate([before.astype(x_BTW.dtype), x_BTW], 1)
        y_BTW = x_BTW * (1 + taps[0])
        for i in range(1, self.width):
            first = self.width - 1 - i
            reaches = (position_BT >= i)[..., None]
            y_BTW += jnp.where(reaches, all_BSW[:, first : first + length], 0) * taps[i]
        count_B = jnp.broadcast_to(position_BT >= 0, (batch, length)).sum(1)
        last = count_B[:, None] + jnp.arange(self.width - 1)
        return y_BTW, jnp.take_along_axis(all_BSW, last[..., None], 1)


class Attention(nn.Module):
    """Grouped-query self-attention, with RoPE if the config has it."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x_BTW: jax.Array,
        context: AttentionContext,
        layer: jax.Array | int,
        window: jax.Array,
        kv: Cache | None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the outputs (B, T, W), and the cache updated with the tokens' keys and values.

        Args:
          x_BTW: inputs.
          context: attention context of the tokens.
          layer: index of this layer in `kv`.
          window: see `AttentionContext.mask`.
          kv: cache of all layers; None without a cache.
        """
        c, key_B = self.config, context.dropout_key_B
        batch, length = x_BTW.shape[:2]

        def project(name: str, heads: int, axis: str) -> jax.Array:
            axes = dict(kernel_axes=("embed", axis), bias_axes=(axis,))
            dense = linear(c, self.dtype, name, heads * c.head_size, c.qkv_bias, name=name, **axes)
            return dense(x_BTW, key_B).reshape(batch, length, heads, c.head_size)

        q = project("query", c.heads, "heads")
        k, v = (project(name, c.key_heads, "kv") for name in ("key", "value"))
        if c.qk_norm:
            kind = "rmsnorm", c.norm_eps, False, c.norm_offset, self.dtype, c.norm_scale
            q, k = Norm(*kind, name="query_norm")(q), Norm(*kind, name="key_norm")(k)
        if c.positions == "rotary":
            frequencies, scale = rotary_frequencies(
                c.head_size,
                c.rope_theta,
                scaling=c.rope_scaling,
                factor=c.rope_factor,
                original_context=c.rope_original_context,
                low_freq_factor=c.rope_low_freq_factor,
                high_freq_factor=c.rope_high_freq_factor,
                beta_fast=c.rope_beta_fast,
                beta_slow=c.rope_beta_slow,
            )
            q = rotate(q, context.position_BT, frequencies, scale)
            k = rotate(k, context.position_BT, frequencies, scale)
        # Sequence parallelism shards queries; keys and values are gathered.
        q = with_logical_constraint(q, "batch", "length", "heads", None)
        k, v = (with_logical_constraint(y, "batch", None, "kv", None) for y in (k, v))
        if kv is not None:
            # Updates the cache of all layers in place: only the new keys are copied.
            at = (layer, jnp.arange(batch)[:, None], slice(None), context.slot_BT)
            kv |= {
                name: kv[name].at[at].set(new.astype(kv[name].dtype), mode="drop")
                for name, new in (("k", k), ("v", v))
            }
            k, v = kv["k"][layer].swapaxes(1, 2), kv["v"][layer].swapaxes(1, 2)
        y_BTHD = attention(
            q,
            k,
            v,
            context.mask(c, window),
            scale=c.attention_scale,
            softcap=c.attention_softcap,
            dropout=None if key_B is None or not c.dropout else (key_B, c.dropout),
        )
        axes = ("heads", "embed")
        out = linear(c, self.dtype, "out", c.width, c.out_bias, name="out", kernel_axes=axes)
        return out(y_BTHD.reshape(batch, length, -1), key_B), kv


class MLP(nn.Module):
    """Two dense layers, or a gated linear unit (Shazeer 2020)."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTW: jax.Array, key_B: jax.Array | None) -> jax.Array:
        c, act = self.config, ACTIVATIONS[self.config.activation]

        def project(
            target: str, features: int, name: str, kernel_axes: tuple[str, str], **kw: Any
        ) -> Linear:
            kw |= dict(kernel_axes=kernel_axes, name=name)
            return linear(c, self.dtype, target, features, c.mlp_bias, **kw)

        def expand(name: str) -> Linear:
            return project(name, c.hidden, name, ("embed", "mlp"), bias_axes=("mlp",))

        y = expand("in")(x_BTW, key_B)
        y = act(expand("gate")(x_BTW, key_B)) * y if c.gated else act(y)
        y = with_logical_constraint(y, "batch", "length", "mlp")
        return project("down", c.width, "out", ("mlp", "embed"))(y, key_B)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); norms follow the sums if `post`."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Cache | None],
        each: tuple[jax.Array | int, jax.Array],
        context: AttentionContext,
    ) -> tuple[tuple[jax.Array, Cache | None], None]:
        """Computes one layer, as the body of a scan.

        Args:
          carry: x_BTW, and the cache of all layers or None.
          each: index of the layer in that cache, and its attention window (0 disables).
          context: attention context of the tokens.
        """
        c, (x_BTW, kv), (layer, window) = self.config, carry, each
        if context.dropout_key_B is not None:  # different dropout in every layer
            key_B = jax.vmap(jax.random.fold_in, (0, None))(context.dropout_key_B, layer)
            context = dataclasses.replace(context, dropout_key_B=key_B)

        def residual(
            x: jax.Array, name: str, branch: Callable[[jax.Array], jax.Array]
        ) -> jax.Array:
            """Returns x + branch(x), with norms as configured."""
            post = c.norm_position == "post"
            y = x if post else norm(c, self.dtype, name=f"{name}_norm")(x)
            if c.conv_width > 1:
                y = convolve(name, y)
            y = branch(y)
            if c.norm_position == "both":
                y = norm(c, self.dtype, name=f"{name}_out_norm")(y)
            y = Dropout(c.dropout, name=f"{name}_dropout")(y, context.dropout_key_B)
            y = y * c.residual_scale
            return norm(c, self.dtype, name=f"{name}_norm")(x + y) if post else x + y

        def convolve(name: str, y: jax.Array) -> jax.Array:
            nonlocal kv
            entry = f"{name}_conv"
            before = None if kv is None else kv[entry][layer]
            y, last = ShortConv(c.conv_width, name=entry)(y, context.position_BT, before)
            if kv is not None:
                kv = kv | {entry: kv[entry].at[layer].set(last.astype(kv[entry].dtype))}
            return y

        def attend(y: jax.Array) -> jax.Array:
            nonlocal kv
            y, kv = Attention(c, self.dtype, name="attention")(y, context, layer, window, kv)
            return y

        def transform(y: jax.Array) -> jax.Array:
            return MLP(c, self.dtype, name="mlp")(y, context.dropout_key_B)

        x_BTW = residual(x_BTW, "attention", attend)
        x_BTW = residual(x_BTW, "mlp", transform)
        x_BTW = with_logical_constraint(x_BTW, "batch", "length", None)
        return (x_BTW, kv), None
