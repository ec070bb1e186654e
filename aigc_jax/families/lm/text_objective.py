"""Base class of objectives over tokens: one player, and low-rank adapters if the model has them.

Shapes: B batch, T tokens, W width.
"""

from typing import Any, Protocol

import jax
import numpy as np

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.text_network import TextNetworkConfig
from aigc_jax.inference.decoder_network import Variables
from aigc_jax.ops.cross_entropy import TokenLosses, cross_entropy


class Tokenizer(Protocol):
    """The part of a tokenizer that objectives use (`modalities/text/tokenizers.py`)."""

    size: int
    separator: int  # the token between documents
    stops: tuple[int, ...]  # tokens that end a text
    prefix: tuple[int, ...]  # tokens before a text
    suffix: tuple[int, ...]  # tokens after it

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, tokens: Any) -> str: ...

    def text(self, tokens: Any) -> str: ...

    def byte_lengths(self) -> np.ndarray: ...


class EncoderNetwork(Protocol):
    """The part of a network that objectives use: pure functions of `TextNetwork`.

    Attributes:
      config: sizes and choices.
      vocab_size: V.
      context: tokens of the longest text.
    """

    config: TextNetworkConfig
    vocab_size: int
    context: int

    def init(
        self, rng: jax.Array, token_BT: jax.Array, /, *, conditions: Conditions | None = None
    ) -> Variables: ...

    def encode(
        self,
        variables: Variables,
        token_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        key_B: jax.Array | None = None,
        conditions: Conditions | None = None,
    ) -> jax.Array: ...

    def vocab_logits(self, variables: Variables, x_BTW: jax.Array) -> jax.Array: ...

    def task_logits(self, variables: Variables, x_BTW: jax.Array) -> jax.Array: ...


def shift(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Inputs, targets (the next tokens) and the inputs' documents, (B, T) each."""
    tokens, segments = batch["tokens"], batch.get("segments")
    return tokens[:, :-1], tokens[:, 1:], None if segments is None else segments[:, :-1]


class TextObjective(Objective):
    """One player, `model`, and a frozen `base` if it is trained by low-rank adapters.

    Args:
      network: a text network, such as `Transformer` or `LSTM`.
    """

    turns = ("model",)

    def __init__(self, network: EncoderNetwork):
        self.network = network

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        """Fresh parameters; there are no mutables."""
        return lora.split_variables(self.network.init(rng, batch["tokens"][:1, :-1])), {}

    def variables(self, params: Params) -> Variables:
        """The network's variables."""
        return lora.join_variables(params)

    def likelihood(self, params: Params, x_BTW: jax.Array, target_BT: jax.Array) -> TokenLosses:
        """The likelihood of targets (B, T) under the vocabulary's head."""
        variables = self.variables(params)
        return cross_entropy(
            lambda x: self.network.vocab_logits(variables, x),
            x_BTW,
            target_BT,
            self.network.vocab_size,
        )

    def merge_adapters(self, params: Params) -> Params:
        """The parameters of one player, the adapters merged into the model."""
        c = self.network.config
        return lora.merge_adapters(params, c.lora_alpha / c.lora_rank) if c.lora_rank else params
