"""The networks that the decoding engine runs, as pure functions of their variables.

Shapes: B rows, T tokens, W width, V vocabulary, R rows to insert.
"""

from typing import Any, Protocol

import jax

from aigc_jax.core.conditions import Conditions

Variables = Any  # a pytree, as Flax's `apply` takes it
Cache = Any  # a pytree of arrays; rows of it belong to slots of the engine


class DecoderNetwork(Protocol):
    """A causal network over tokens with a cache.

    It is hashable, as it is a static argument of jitted functions. Its rows are independent: what
    it computes for one does not depend on the others.

    Attributes:
      context: tokens that its cache holds at most.
      vocab_size: V.
    """

    context: int
    vocab_size: int

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache of `batch` rows for `length` tokens each, at most `context`."""
        ...

    def extend(
        self,
        variables: Variables,
        token_BT: jax.Array,
        position_BT: jax.Array,
        cache: Cache,
        conditions: Conditions | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Reads T more tokens of each row.

        Args:
          variables: its parameters.
          token_BT: int32 tokens.
          position_BT: their positions; −1 for padding, at the end of a row, which leaves the cache
            as it is.
          cache: what the row has read before.
          conditions: of the rows; None: those with which the cache was begun.

        Returns:
          Features (B, T, W) for `vocab_logits`, and the cache with these tokens in it. Past its
          length the oldest tokens are overwritten.
        """
        ...

    def vocab_logits(self, variables: Variables, x_BTW: jax.Array) -> jax.Array:
        """Logits (B, T, V) of the next token, float32."""
        ...

    def insert_rows(self, cache: Cache, prefix: Cache, row_R: jax.Array | None) -> Cache:
        """The cache with rows `row_R` replaced by all R rows of another one.

        Args:
          cache: from `init_cache`, or in the form of `per_layer_cache`.
          prefix: from `init_cache`, for as many tokens or fewer.
          row_R: rows of `cache`; None: all of them, in order.
        """
        ...

    def per_layer_variables(self, variables: Variables) -> Variables:
        """Variables with each layer's arrays by themselves, matrices in the computation's type.

        `extend` takes them together with a cache in the form of `per_layer_cache`.
        """
        ...

    def per_layer_cache(self, cache: Cache) -> Cache:
        """A cache with each layer's arrays by themselves."""
        ...
