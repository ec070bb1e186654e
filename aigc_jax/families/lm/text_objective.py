"""What the objectives of text share: one player, and adapters beside it if the model has them.

Shapes: B batch, T tokens, W width.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from aigc_jax.core.objective import Batch, Objective, Params
from aigc_jax.families.lm import lora
from aigc_jax.ops.cross_entropy import TokenLosses, cross_entropy


class Tokenizer(Protocol):
    """What an objective needs of a tokenizer (`data.tokenizers`)."""

    size: int
    separator: int  # the token between documents
    stops: tuple[int, ...]  # tokens that end a text
    prefix: tuple[int, ...]  # tokens before a text
    suffix: tuple[int, ...]  # tokens after it

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, tokens: Any) -> str: ...

    def text(self, tokens: Any) -> str: ...

    def byte_lengths(self) -> np.ndarray: ...


def shift(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Inputs, targets and the inputs' documents, (B, T) each."""
    tokens, segments = batch["tokens"], batch.get("segments")
    return tokens[:, :-1], tokens[:, 1:], None if segments is None else segments[:, :-1]


class TextObjective(Objective):
    """One player, `model`, and a frozen `base` if it is trained by low-rank adapters.

    Args:
      model: a text model, `models.transformer` or `models.lstm`.
    """

    turns = ("model",)

    def __init__(self, model: Any):
        self.model = model

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        return lora.split_variables(self.model.init(rng, batch["tokens"][:1, :-1])), {}

    def apply(self, params: Any) -> Callable[..., Any]:
        """The model's methods with these parameters."""
        variables = lora.join_variables(params)
        return lambda *args, **kwargs: self.model.apply(variables, *args, **kwargs)

    def likelihood(self, params: Any, x_BTW: jax.Array, target_BT: jax.Array) -> TokenLosses:
        """What the vocabulary's head, reading (B, T, W), says of the targets."""
        apply = self.apply(params)
        return cross_entropy(
            lambda x: apply(x, method="logits"), x_BTW, target_BT, self.model.vocab_size
        )

    def merge_adapters(self, params: Params) -> Params:
        """The parameters of one player, the adapters merged into the model."""
        c = self.model.config
        return lora.merge_adapters(params, c.lora_alpha / c.lora_rank) if c.lora_rank else params
