"""Base class of text networks: methods of a module, and the same as pure functions of variables.

Objectives and the decoding engine call the pure functions `encode`, `extend`, `vocab_logits` and
`task_logits`, never `apply`. `Transformer` and `LSTM` implement the module methods `features`,
`head` and `task_outputs`.

Shapes: B batch, T tokens, W width, V vocabulary, O outputs of a task, R rows.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from aigc_jax.core.conditions import Conditions
from aigc_jax.inference.decoder_network import Cache, Variables
from aigc_jax.nn.conditioner import Conditioner

CONDITION = "condition"  # entry of a cache: the embedded conditions of its rows (B, W)


class TextNetworkConfig(Protocol):
    """The fields of the config section `model` that objectives read.

    Attributes:
      causal: whether a token depends on none after it.
      bounded: whether texts cannot be longer than `context`.
      lora_rank: of low-rank adapters; 0: none.
      lora_alpha: their scale times their rank.
    """

    @property
    def causal(self) -> bool: ...

    @property
    def bounded(self) -> bool: ...

    @property
    def lora_rank(self) -> int: ...

    @property
    def lora_alpha(self) -> float: ...


class TextNetwork(nn.Module):
    """Base class of networks over tokens.

    Attributes:
      config: sizes and choices.
      vocab_size: V.
      context: tokens of the longest text (`config.bounded`), and the most that a cache holds.
      dtype: of the computation; parameters and logits are float32.
      num_outputs: O, of a task's head beside the vocabulary's; 0: none.
      embedders: of conditions, by name (`nn/conditioner.py`); their vector (B, W) is added to every
        token embedding.
    """

    config: Any
    vocab_size: int
    context: int
    dtype: jnp.dtype = jnp.float32
    num_outputs: int = 0
    embedders: Mapping[str, nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.embedders is not None:  # static arguments of jitted functions are hashed
            self.embedders = FrozenDict(self.embedders)
        super().__post_init__()

    # Methods of the module: inside `apply` only.

    def features(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        cache: Cache | None = None,
        conditions: Conditions | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Features (B, T, W) for the heads, and the cache with these tokens in it.

        Args:
          token_BT: int32 tokens.
          position_BT: their positions, −1 for padding; None: 0…T−1, or counted within each
            document.
          segments_BT: documents packed into a row, which do not see each other; 0: padding.
          key_B: dropout keys; None: no dropout.
          cache: of earlier tokens, from `init_cache`; None: the tokens see themselves only.
          conditions: of the rows; None: those in the cache, if there is one.
        """
        raise NotImplementedError

    def head(self, x_BTW: jax.Array) -> jax.Array:
        """Logits (…, V) in float32."""
        raise NotImplementedError

    def task_outputs(self, x_BTW: jax.Array) -> jax.Array:
        """A task's outputs (…, O) in float32."""
        raise NotImplementedError

    def __call__(
        self,
        token_BT: jax.Array,
        position_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        cache: Cache | None = None,
        conditions: Conditions | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits (B, T, V) in float32, and the cache with these tokens in it; see `features`."""
        x_BTW, cache = self.features(token_BT, position_BT, segments_BT, key_B, cache, conditions)
        if self.is_initializing() and self.num_outputs:
            self.task_outputs(x_BTW)
        return self.head(x_BTW), cache

    def add_conditions(
        self, x_BTW: jax.Array, conditions: Conditions | None, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        """Token embeddings with the embedded conditions added, and the cache with these in it.

        Raises:
          ValueError: for conditions without an embedder, or one that makes no vector.
        """
        if conditions:
            embedders = dict(self.embedders or {})
            if unknown := sorted(set(conditions) - set(embedders)):
                raise ValueError(f"this network has no embedder of the condition '{unknown[0]}'")
            vector_BW = Conditioner(embedders)(conditions).vector
            if vector_BW is None:
                raise ValueError("text networks take conditions that are embedded as vectors")
        elif cache is not None and CONDITION in cache:
            vector_BW = cache[CONDITION]
        else:
            return x_BTW, cache
        vector_BW = vector_BW.astype(self.dtype)
        if cache is not None:
            cache = {**cache, CONDITION: vector_BW}
        return x_BTW + vector_BW[:, None], cache

    # Pure functions of variables.

    @nn.nowrap
    def encode(
        self,
        variables: Variables,
        token_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        conditions: Conditions | None = None,
    ) -> jax.Array:
        """Features (B, T, W) of whole texts; see `features`."""
        given: dict[str, Any] = dict(segments_BT=segments_BT, key_B=key_B, conditions=conditions)
        return self.apply(variables, token_BT, **given, method=type(self).features)[0]

    @nn.nowrap
    def extend(
        self,
        variables: Variables,
        token_BT: jax.Array,
        position_BT: jax.Array,
        cache: Cache,
        conditions: Conditions | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Features (B, T, W) of more tokens, and the cache with them; see `DecoderNetwork`."""
        given: dict[str, Any] = dict(cache=cache, conditions=conditions)
        return self.apply(variables, token_BT, position_BT, **given, method=type(self).features)

    @nn.nowrap
    def vocab_logits(self, variables: Variables, x_BTW: jax.Array) -> jax.Array:
        """Logits (…, V) from features, float32."""
        logits: Any = self.apply(variables, x_BTW, method=type(self).head)
        return logits

    @nn.nowrap
    def task_logits(self, variables: Variables, x_BTW: jax.Array) -> jax.Array:
        """A task's outputs (…, O) from features, float32."""
        outputs: Any = self.apply(variables, x_BTW, method=type(self).task_outputs)
        return outputs

    # Caches, and the form of variables in which a step of decoding is fast.

    @nn.nowrap
    def init_cache(self, batch: int, length: int = 0) -> Cache:
        """An empty cache of `batch` rows for `length` tokens, at most and by default `context`."""
        raise NotImplementedError

    @nn.nowrap
    def insert_rows(self, cache: Cache, prefix: Cache, row_R: jax.Array | None) -> Cache:
        """The cache with rows replaced by those of another; see `DecoderNetwork`."""
        raise NotImplementedError

    @nn.nowrap
    def per_layer_variables(self, variables: Variables) -> Variables:
        """Variables as they are: for networks whose layers have arrays of their own."""
        return variables

    @nn.nowrap
    def per_layer_cache(self, cache: Cache) -> Cache:
        """The cache as it is: for networks whose layers have arrays of their own."""
        return cache

    @nn.nowrap
    def condition_cache(self, batch: int) -> Cache:
        """The entry of an empty cache for embedded conditions, if the network has any."""
        if not self.embedders:
            return {}
        return {CONDITION: jnp.zeros((batch, self.config.width), self.dtype)}

    @nn.nowrap
    def decoding_bytes(self, variables: Variables, batch: int, length: int) -> float:
        """The least bytes that a step reads which adds a token to each of `batch` rows.

        Every parameter once, in the computation's type, and the part of the cache that is filled on
        average while `length` tokens are written. Tables that are only looked up do not count.
        """
        raise NotImplementedError
