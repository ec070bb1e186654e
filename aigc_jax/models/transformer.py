"""A decoder-only transformer with an optional KV cache.

Shapes: B batch, T tokens, S cache slots, H heads, D head size, V vocabulary, L layers.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import option
from aigc_jax.errors import UserError
from aigc_jax.models.layers import Dropout
from aigc_jax.ops.attention import attention, rotate


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    layers: int = option(4, low=1)
    width: int = option(128, low=2)
    heads: int = option(4, low=1)
    mlp_ratio: float = option(4.0, low=0.1)
    positions: str = option("rotary", choices=("rotary", "learned"))
    rope_theta: float = option(10_000.0, low=1.0)
    dropout: float = option(0.0, low=0.0, high=0.99)
    tie_embeddings: bool = True
    remat: bool = False  # compute each block's activations again in the backward pass: less memory

    def __post_init__(self):
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UserError(
                f"model.width={self.width} must be divisible by model.heads={self.heads} into an"
                " even head size"
            )


Cache = dict[str, jax.Array]  # "k" and "v", each (L, B, S, H, D)


class Attention(nn.Module):
    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTW, position_BT, cache):
        c = self.config
        batch, length = position_BT.shape

        def project(name):
            y = nn.Dense(c.width, use_bias=False, dtype=self.dtype, name=name)(x_BTW)
            return y.reshape(batch, length, c.heads, c.width // c.heads)

        q, k, v = project("query"), project("key"), project("value")
        if c.positions == "rotary":
            q, k = rotate(q, position_BT, c.rope_theta), rotate(k, position_BT, c.rope_theta)
        if cache is not None:
            # A ring: past the last slot the oldest key is overwritten.
            size = cache["k"].shape[1]
            at = (jnp.arange(k.shape[0])[:, None], position_BT % size)
            cache = {"k": cache["k"].at[at].set(k), "v": cache["v"].at[at].set(v)}
            k, v = cache["k"], cache["v"]
        size = k.shape[1]
        mask_BTS = (jnp.arange(size) <= position_BT[..., None]) | (position_BT[..., None] >= size)
        y_BTHD = attention(q, k, v, mask_BTS)
        out = nn.Dense(
            c.width,
            use_bias=False,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="out",
        )
        return out(y_BTHD.reshape(batch, length, c.width)), cache


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTW, position_BT, key_B, cache):
        c = self.config
        y, cache = Attention(c, self.dtype, name="attention")(
            nn.RMSNorm(dtype=self.dtype, name="attention_norm")(x_BTW), position_BT, cache
        )
        x_BTW = x_BTW + Dropout(c.dropout, name="attention_dropout")(y, key_B)
        y = nn.RMSNorm(dtype=self.dtype, name="mlp_norm")(x_BTW)
        y = nn.Dense(int(c.width * c.mlp_ratio), dtype=self.dtype, name="mlp_in")(y)
        y = nn.Dense(c.width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="mlp_out")(
            jax.nn.gelu(y)
        )
        return x_BTW + Dropout(c.dropout, name="mlp_dropout")(y, key_B), cache


class Transformer(nn.Module):
    """Next-token logits.

    Attributes:
      config: sizes.
      vocab_size: V.
      context: the longest sequence with learned positions, and the cache's number of slots.
      dtype: of the computation; parameters and logits are float32.
    """

    config: TransformerConfig
    vocab_size: int
    context: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits (B, T, V) in float32, and the cache with these tokens in it.

        Args:
          token_BT: int32 tokens.
          position_BT: their positions; 0…T−1 if left out.
          key_B: dropout keys; none: no dropout.
          cache: keys and values of earlier tokens, from `init_cache`; none: the tokens attend to
            themselves only.
        """
        c = self.config
        if position_BT is None:
            position_BT = jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape)
        embed = nn.Embed(
            self.vocab_size,
            c.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        x_BTW = embed(token_BT)
        if c.positions == "learned":
            x_BTW += nn.Embed(
                self.context,
                c.width,
                embedding_init=nn.initializers.normal(0.02),
                dtype=self.dtype,
                name="position_embedding",
            )(position_BT)
        x_BTW = Dropout(c.dropout, name="embedding_dropout")(x_BTW, key_B)
        layers, block = [], nn.remat(Block) if c.remat else Block
        for i in range(c.layers):
            layer = None if cache is None else jax.tree.map(lambda x, i=i: x[i], cache)
            x_BTW, layer = block(c, self.dtype, name=f"block_{i}")(x_BTW, position_BT, key_B, layer)
            layers.append(layer)
        x_BTW = nn.RMSNorm(dtype=self.dtype, name="final_norm")(x_BTW)
        if c.tie_embeddings:
            logits_BTV = embed.attend(x_BTW)
        else:
            logits_BTV = nn.Dense(
                self.vocab_size, use_bias=False, dtype=self.dtype, name="head_embedding"
            )(x_BTW)
        if cache is not None:
            cache = jax.tree.map(lambda *x: jnp.stack(x), *layers)
        return logits_BTV.astype(jnp.float32), cache

    def init_cache(self, batch: int) -> Cache:
        """An empty cache of `context` slots."""
        c = self.config
        shape = (c.layers, batch, self.context, c.heads, c.width // c.heads)
        return {"k": jnp.zeros(shape, self.dtype), "v": jnp.zeros(shape, self.dtype)}
