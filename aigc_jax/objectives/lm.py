"""Language modelling: predict the next token.

Shapes: B batch, T tokens, V vocabulary, N samples.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax import config
from aigc_jax.config import option
from aigc_jax.errors import UserError
from aigc_jax.models.transformer import Transformer
from aigc_jax.objectives.base import Batch, Request
from aigc_jax.sampling.decode import decode
from aigc_jax.train.metrics import Mean


@dataclasses.dataclass(frozen=True)
class LMConfig:
    z_loss: float = option(0.0, low=0.0)  # weight of log² Z, which keeps logits from drifting


@dataclasses.dataclass(frozen=True)
class LMSample(config.Sample):
    num: int = option(4, low=1)
    prompt: str = ""
    max_new_tokens: int = option(256, low=1)
    temperature: float = option(1.0, low=0.0)  # 0: the likeliest token
    top_k: int = option(0, low=0)  # 0: off
    top_p: float = option(1.0, low=0.0, high=1.0)  # 1: off


class Tokenizer(Protocol):
    """What the objective needs of a tokenizer (`data.text`)."""

    size: int
    separator: int  # the token between documents

    def encode(self, text: str) -> np.ndarray: ...

    def byte_lengths(self) -> np.ndarray: ...


class LanguageModel:
    """One player, `model`: cross-entropy of the next token."""

    turns = ("model",)
    num_classes = 0

    def __init__(self, config: LMConfig, model: Transformer, tokenizer: Tokenizer):
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.bytes_V = jnp.asarray(tokenizer.byte_lengths(), jnp.float32)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        params = self.model.init(rng, batch["tokens"][:1, :-1])["params"]
        return {"model": params}, {}

    def _nats(self, params: Any, batch: Batch, key_B: jax.Array | None):
        token_BT, target_BT = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits_BTV, _ = self.model.apply({"params": params["model"]}, token_BT, key_B=key_B)
        nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, target_BT)
        return logits_BTV, target_BT, nats_BT

    def loss(self, player, params, mutables, batch, key_B, step):
        """Nats per token, over the tokens that have weight. `batch["weight"]` is (B, T)."""
        logits_BTV, target_BT, nats_BT = self._nats(params, batch, key_B)
        weight_BT = batch["weight"]
        loss_BT = nats_BT
        if self.config.z_loss:
            loss_BT += self.config.z_loss * jax.nn.logsumexp(logits_BTV, -1) ** 2
        correct_BT = logits_BTV.argmax(-1) == target_BT
        metrics = {"accuracy": Mean.of(correct_BT, weight_BT)}
        return Mean.of(loss_BT, weight_BT), (metrics, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` in nats per token, `accuracy`, and `bits_per_byte` of the text itself."""
        logits_BTV, target_BT, nats_BT = self._nats(params, batch, None)
        weight_BT = batch["weight"]
        loss = Mean.of(nats_BT, weight_BT)
        return {
            "loss": loss,
            "accuracy": Mean.of(logits_BTV.argmax(-1) == target_BT, weight_BT),
            "bits_per_byte": Mean(
                loss.total / jnp.log(2.0), (self.bytes_V[target_BT] * weight_BT).sum()
            ),
        }

    def sample(self, params, key_N, request: Request) -> jax.Array:
        """Tokens (N, max_new_tokens) that follow the prompt; the separator fills up ended rows.

        Raises:
          UserError: if learned positions do not reach that far.
        """
        o: LMSample = request.options
        prompt = np.concatenate(
            [[self.tokenizer.separator], self.tokenizer.encode(o.prompt)]
        ).astype(np.int32)[-self.model.context :]
        total = len(prompt) + o.max_new_tokens
        if self.model.config.positions == "learned" and total > self.model.context:
            raise UserError(
                f"prompt and new tokens together are {total} tokens, but this model's learned"
                f" positions end at {self.model.context}: ask for fewer with --max_new_tokens"
            )
        prompts = np.broadcast_to(prompt, (key_N.shape[0], len(prompt)))
        lengths = np.full(key_N.shape[0], len(prompt), np.int32)
        return decode(
            self.model,
            params["model"],
            key_N,
            prompts,
            lengths,
            max_new_tokens=o.max_new_tokens,
            stop=self.tokenizer.separator,
            temperature=o.temperature,
            top_k=o.top_k,
            top_p=o.top_p,
        )
