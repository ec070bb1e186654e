"""A recurrent text model: the second architecture behind the same objective.

Shapes: B batch, T tokens, W width, V vocabulary, L layers, O outputs of a task.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import Dropout, Linear
from aigc_jax.ops.attention_mask import segment_positions

Cache = dict[str, jax.Array]  # "c", "h" (L, B, W)


@dataclasses.dataclass(frozen=True)
class LSTMConfig:
    layers: int = option(2, low=1)
    width: int = option(256, low=1)
    dropout: float = option(0.0, low=0.0, high=0.99, init_compatible=True)
    tie_embeddings: bool = True
    vocab_size: int = option(0, low=0, init_compatible=True)  # 0: the tokenizer's

    causal = True
    bounded = False  # texts may be of any length
    context = 0
    lora_rank = 0


class Step(nn.Module):
    """One token through one layer: a new document begins with an empty memory."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry, each):
        x_BW, position_B1 = each
        kept = jax.tree.map(lambda m: jnp.where(position_B1 == 0, 0, m), carry)
        # Not over tensor: beside data and fsdp, XLA's partitioner makes the loop's gradient wrong.
        axes, init = ("embed", None), nn.initializers
        cell = nn.OptimizedLSTMCell(
            self.width,
            kernel_init=nn.with_logical_partitioning(init.lecun_normal(), axes),
            recurrent_kernel_init=nn.with_logical_partitioning(init.orthogonal(), axes),
            bias_init=nn.with_logical_partitioning(init.zeros, (None,)),
            dtype=self.dtype,
            name="cell",
        )
        new, y_BW = cell(kept, x_BW)
        # Padding leaves the memory as it is.
        return jax.tree.map(lambda n, o: jnp.where(position_B1 < 0, o, n), new, carry), y_BW


class LSTM(nn.Module):
    """Next-token logits from LSTM layers (Hochreiter & Schmidhuber 1997), with residual paths.

    Attributes and methods are those of `Transformer`; its cache is the layers' memory.
    """

    config: LSTMConfig
    vocab_size: int
    context: int
    dtype: jnp.dtype = jnp.float32
    num_outputs: int = 0

    def setup(self):
        c = self.config
        self.token_embedding = nn.Embed(
            self.vocab_size,
            c.width,
            embedding_init=nn.with_logical_partitioning(
                nn.initializers.normal(0.1), ("vocab", "embed")
            ),
            dtype=self.dtype,
        )
        over_time = nn.scan(
            Step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        self.layers = [over_time(c.width, self.dtype) for _ in range(c.layers)]
        self.dropouts = [Dropout(c.dropout) for _ in range(c.layers + 1)]
        if not c.tie_embeddings:
            self.head_embedding = Linear(
                self.vocab_size, dtype=self.dtype, kernel_axes=("embed", "vocab")
            )
        if self.num_outputs:
            self.task_head = Linear(
                self.num_outputs, True, dtype=self.dtype, kernel_axes=("embed", "outputs")
            )

    def __call__(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
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
        """What the heads read, (B, T, W), and the memory after these tokens."""
        batch, length = token_BT.shape
        if position_BT is None:
            position_BT = jnp.arange(length)[None]
            if segments_BT is not None:
                position_BT = segment_positions(segments_BT)
        position_BT1 = jnp.broadcast_to(position_BT, (batch, length))[..., None]
        memory = self.init_cache(batch) if cache is None else cache
        x_BTW = with_logical_constraint(
            self.dropouts[0](self.token_embedding(token_BT), key_B), "batch"
        )
        after = []
        for i, layer in enumerate(self.layers):
            carry = (memory["c"][i], memory["h"][i])
            carry, y_BTW = layer(carry, (x_BTW, position_BT1))
            after.append(carry)
            x_BTW = x_BTW + self.dropouts[i + 1](y_BTW, key_B)
        if cache is not None:
            cache = {k: jnp.stack(m) for k, m in zip("ch", zip(*after, strict=True), strict=True)}
        return x_BTW, cache

    def logits(self, x_BTW: jax.Array) -> jax.Array:
        """Of the next token: (…, V) in float32."""
        head = self.token_embedding.attend if self.config.tie_embeddings else self.head_embedding
        return head(x_BTW).astype(jnp.float32)

    def task_logits(self, x_BTW: jax.Array) -> jax.Array:
        """A task's outputs (…, O) in float32."""
        return self.task_head(x_BTW).astype(jnp.float32)

    def by_layer(self, variables: Any, cache: Cache) -> tuple[Any, Cache]:
        """Both as they are: each layer has its own arrays already."""
        return variables, cache

    def init_cache(self, batch: int, slots: int = 0) -> Cache:
        """An empty memory; it has no slots."""
        shape = (self.config.layers, batch, self.config.width)
        return {"c": jnp.zeros(shape, self.dtype), "h": jnp.zeros(shape, self.dtype)}
