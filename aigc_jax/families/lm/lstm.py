"""A recurrent text model: the second architecture behind the same objective.

Shapes: B batch, T tokens, W width, V vocabulary, L layers, O outputs of a task.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.fields import option
from aigc_jax.core.state import named_leaves
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.families.lm.text_network import CONDITION, TextNetwork
from aigc_jax.nn.layers import Dropout, Linear
from aigc_jax.ops.attention_mask import segment_positions

Cache = dict[str, jax.Array]  # "c", "h" (L, B, W); "condition" (B, W), if there are conditions


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
    lora_rank, lora_alpha = 0, 0.0


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


class LSTM(TextNetwork):
    """Next-token logits from LSTM layers (Hochreiter & Schmidhuber 1997), with residual paths.

    Attributes and methods are those of `TextNetwork`; its cache is the layers' memory.
    """

    config: LSTMConfig

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

    def features(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        cache: Cache | None = None,
        conditions: Conditions | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Features (B, T, W) for the heads, and the memory after these tokens; see the base."""
        batch, length = token_BT.shape
        if position_BT is None:
            position_BT = jnp.arange(length)[None]
            if segments_BT is not None:
                position_BT = segment_positions(segments_BT)
        position_BT1 = jnp.broadcast_to(position_BT, (batch, length))[..., None]
        memory = self.init_cache(batch) if cache is None else cache
        x_BTW, cache = self.add_conditions(self.token_embedding(token_BT), conditions, cache)
        x_BTW = with_logical_constraint(self.dropouts[0](x_BTW, key_B), "batch")
        after = []
        for i, layer in enumerate(self.layers):
            carry = (memory["c"][i], memory["h"][i])
            carry, y_BTW = layer(carry, (x_BTW, position_BT1))
            after.append(carry)
            x_BTW = x_BTW + self.dropouts[i + 1](y_BTW, key_B)
        if cache is not None:
            c, h = (jnp.stack(m) for m in zip(*after, strict=True))
            cache = {**cache, "c": c, "h": h}
        return x_BTW, cache

    def head(self, x_BTW: jax.Array) -> jax.Array:
        """Logits (…, V) of the next token in float32."""
        head = self.token_embedding.attend if self.config.tie_embeddings else self.head_embedding
        return head(x_BTW).astype(jnp.float32)

    def task_outputs(self, x_BTW: jax.Array) -> jax.Array:
        """A task's outputs (…, O) in float32."""
        return self.task_head(x_BTW).astype(jnp.float32)

    @nn.nowrap
    def init_cache(self, batch: int, length: int = 0) -> Cache:
        """An empty memory of `batch` rows; its size does not depend on `length`."""
        shape = (self.config.layers, batch, self.config.width)
        memory = {"c": jnp.zeros(shape, self.dtype), "h": jnp.zeros(shape, self.dtype)}
        return {**memory, **self.condition_cache(batch)}

    @nn.nowrap
    def insert_rows(self, cache: Cache, prefix: Cache, row_R: jax.Array | None) -> Cache:
        """The memory with rows replaced by those of another; see `DecoderNetwork`."""
        row = slice(None) if row_R is None else row_R
        after = {k: cache[k].at[:, row].set(prefix[k]) for k in ("c", "h")}
        if CONDITION in cache:
            after[CONDITION] = cache[CONDITION].at[row].set(prefix[CONDITION])
        return after

    @nn.nowrap
    def decoding_bytes(self, variables: Any, batch: int, length: int) -> float:
        """The least bytes that a step of decoding reads; see the base."""
        lookup = set() if self.config.tie_embeddings else {"token_embedding"}
        leaves = named_leaves(variables)
        weights = sum(x.size for name, x in leaves if not lookup & {*name.split("/")})
        memory = jax.tree.leaves(jax.eval_shape(lambda: self.init_cache(batch)))
        return float((weights + sum(x.size for x in memory)) * jnp.dtype(self.dtype).itemsize)
