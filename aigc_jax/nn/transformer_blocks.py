"""A transformer's block: attention, then a perceptron, each beside a residual path.

Shapes: B batch, T tokens, S cache slots, H query heads, K key heads, D head size, W width, L
layers.
"""

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

# "k", "v" (L, B, K, S, D); "position" (B, S), −1: empty; the inputs of short convolutions
# "attention_conv", "mlp_conv" (L, B, conv_width − 1, W), if there are any.
Cache = dict[str, jax.Array]


@flax.struct.dataclass
class AttentionContext:
    """Positions, segments and cache slots of the tokens; the same for every layer.

    Attributes:
      query_BT: positions of the tokens; −1: padding.
      key_BS: positions of what they may attend to: themselves, or the cache's slots.
      segments: segment ids of the tokens (B, T) and of the keys (B, S); None: one segment.
      slot_BT: the cache's slots for the tokens; S for padding, which is not kept.
      key_B: dropout keys; none: no dropout.
      contiguous: see `AttentionMask`.
    """

    query_BT: jax.Array
    key_BS: jax.Array
    segments: tuple[jax.Array, jax.Array] | None
    slot_BT: jax.Array | None
    key_B: jax.Array | None
    contiguous: bool = flax.struct.field(pytree_node=False, default=False)

    def mask(self, c: TransformerConfig, window: jax.Array) -> AttentionMask:
        """Returns the mask of a layer whose tokens attend to `window` positions; 0: all."""
        same = c.common_window
        span = dict(dynamic_window=window) if same is None else dict(window=same)
        return AttentionMask(
            self.query_BT, self.key_BS, self.segments, c.causal, contiguous=self.contiguous, **span
        )


def linear(c: TransformerConfig, dtype: jnp.dtype, target: str, features: int, bias: bool, **kw):
    """A projection, with a low-rank change if the config names it."""
    std, last = c.init_std, target in ("out", "down")
    init = nn.initializers.normal(std) if std else nn.initializers.lecun_normal()
    if last:  # GPT-2's rule: the sum of 2L branches keeps its size
        scaled = nn.initializers.variance_scaling(0.5 / c.layers, "fan_in", "truncated_normal")
        init = nn.initializers.normal(std / (2 * c.layers) ** 0.5) if std else scaled
    if c.zero_init and (last or target == "vocabulary"):
        init = nn.initializers.zeros
    lora = None
    if c.lora_rank and target in c.lora_targets:
        lora = Lora(c.lora_rank, c.lora_alpha, c.lora_dropout)
    return Linear(features, bias, init, dtype, lora=lora, **kw)


def norm(c: TransformerConfig, dtype: jnp.dtype, **kw: Any) -> Norm:
    return Norm(c.norm, c.norm_eps, c.norm_bias, c.norm_offset, dtype, c.norm_scale, **kw)


class ShortConv(nn.Module):
    """Adds to each token's vector those of the tokens before it, weighted channel by channel.

    A causal depthwise convolution beside a residual path, which begins as nothing.
    """

    width: int  # tokens, its own included

    @nn.compact
    def __call__(self, x_BTW: jax.Array, position_BT: jax.Array, before: jax.Array | None):
        """The mixed vectors, and the last inputs (B, width − 1, W) for the next call.

        Args:
          x_BTW: the inputs; padding only at the end of a row.
          position_BT: positions; a token has as many before it in its document. −1: padding.
          before: the inputs of the tokens before; none: there are none.
        """
        batch, length, features = x_BTW.shape
        shape = (self.width, features)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("position", "norm"))
        taps = self.param("taps", init, shape).astype(x_BTW.dtype)
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
    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTW, context: AttentionContext, layer, window, kv):
        c, key_B = self.config, context.key_B
        batch, length = x_BTW.shape[:2]

        def project(name, heads, axis):
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
            q = rotate(q, context.query_BT, frequencies, scale)
            k = rotate(k, context.query_BT, frequencies, scale)
        # Each device has queries of its part of the text, and the keys and values of all of it.
        q = with_logical_constraint(q, "batch", "length", "heads", None)
        k, v = (with_logical_constraint(y, "batch", None, "kv", None) for y in (k, v))
        if kv is not None:
            # Into the cache of all layers, in place: nothing but the new keys is written.
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
    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTW, key_B):
        c, act = self.config, ACTIVATIONS[self.config.activation]

        def project(target, features, name, kernel_axes, **kw):
            kw |= dict(kernel_axes=kernel_axes, name=name)
            return linear(c, self.dtype, target, features, c.mlp_bias, **kw)

        def expand(name):
            return project(name, c.hidden, name, ("embed", "mlp"), bias_axes=("mlp",))

        y = expand("in")(x_BTW, key_B)
        y = act(expand("gate")(x_BTW, key_B)) * y if c.gated else act(y)
        y = with_logical_constraint(y, "batch", "length", "mlp")
        return project("down", c.width, "out", ("mlp", "embed"))(y, key_B)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); or with the norms after the sums (`post`)."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry, each, context: AttentionContext):
        """One layer of the loop.

        Args:
          carry: x_BTW, and the keys and values of all layers or none.
          each: the layer's number, and how many positions it sees.
          context: positions, segments and cache slots of the tokens.
        """
        c, (x_BTW, kv), (layer, window) = self.config, carry, each
        if context.key_B is not None:  # every layer drops its own
            keys = jax.vmap(jax.random.fold_in, (0, None))(context.key_B, layer)
            context = context.replace(key_B=keys)

        def beside(x, name, branch):
            """The residual path of a branch, with the norms where the config has them."""
            post = c.norm_position == "post"
            y = x if post else norm(c, self.dtype, name=f"{name}_norm")(x)
            if c.conv_width > 1:
                y = mix(name, y)
            y = branch(y)
            if c.norm_position == "both":
                y = norm(c, self.dtype, name=f"{name}_out_norm")(y)
            y = Dropout(c.dropout, name=f"{name}_dropout")(y, context.key_B) * c.residual_scale
            return norm(c, self.dtype, name=f"{name}_norm")(x + y) if post else x + y

        def mix(name, y):
            nonlocal kv
            held, at = f"{name}_conv", context.query_BT
            before = None if kv is None else kv[held][layer]
            y, last = ShortConv(c.conv_width, name=held)(y, at, before)
            if kv is not None:
                kv = kv | {held: kv[held].at[layer].set(last.astype(kv[held].dtype))}
            return y

        def attend(y):
            nonlocal kv
            y, kv = Attention(c, self.dtype, name="attention")(y, context, layer, window, kv)
            return y

        x_BTW = beside(x_BTW, "attention", attend)
        x_BTW = beside(x_BTW, "mlp", lambda y: MLP(c, self.dtype, name="mlp")(y, context.key_B))
        x_BTW = with_logical_constraint(x_BTW, "batch", "length", None)
        return (x_BTW, kv), None
