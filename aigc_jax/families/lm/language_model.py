"""Language modelling: predict the next token.

Shapes: B batch, T tokens, V vocabulary, W width, N samples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import config
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Batch, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.text_objective import TextObjective, Tokenizer, shift
from aigc_jax.inference.engine import SamplingParams, decode, pad_prompts
from aigc_jax.ops.cross_entropy import TokenLosses


@dataclasses.dataclass(frozen=True)
class LMConfig:
    z_loss: float = option(0.0, low=0.0)  # weight of log² Z, which keeps logits from drifting
    label_smoothing: float = option(0.0, low=0.0, high=0.99)  # share spread over the vocabulary


@dataclasses.dataclass(frozen=True)
class LMSample(config.Sample):
    num: int = option(4, low=1)
    prompts: tuple[str, ...] = option(("",), nonempty=True)  # the samples continue them in turn
    max_new_tokens: int = option(256, low=1)
    temperature: float = option(1.0, low=0.0)  # 0: the likeliest token
    top_k: int = option(0, low=0)  # 0: off
    top_p: float = option(1.0, low=0.0, high=1.0)  # 1: off
    min_p: float = option(0.0, low=0.0, high=1.0)  # 0: off
    repetition_penalty: float = option(1.0, low=0.01)  # 1: off
    stop: tuple[str, ...] = ()  # a text ends before any of these

    def choice(self) -> SamplingParams:
        return SamplingParams(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty
        )


def training_nats(likelihood: TokenLosses, label_smoothing: float, z_loss: float) -> jax.Array:
    """What is minimised, (B, T): smoothed cross-entropy and the z-loss (de Brébisson 2016)."""
    nats = likelihood.nats
    if label_smoothing:
        nats = (1 - label_smoothing) * nats + label_smoothing * likelihood.smooth
    return nats + z_loss * likelihood.log_z**2 if z_loss else nats


class LanguageModel(TextObjective):
    """One player, `model`: cross-entropy of the next token.

    Args:
      config: the loss.
      model: a causal text model, `models.transformer` or `models.lstm`.
      tokenizer: of its tokens.
    """

    def __init__(self, config: LMConfig, model: Any, tokenizer: Tokenizer):
        if not model.config.causal:
            raise UserError(
                "objective.name='lm' predicts the next token, which model.causal=False shows it:"
                " set model.causal=True, or objective.name='masked_lm'"
            )
        super().__init__(model)
        self.config, self.tokenizer = config, tokenizer
        self.network, self.context, self.bounded = model, model.context, model.config.bounded
        known = tokenizer.byte_lengths()  # no text has the other entries of the vocabulary
        self.bytes_V = jnp.asarray(np.pad(known, (0, model.vocab_size - len(known))), jnp.float32)

    def _likelihood(
        self, params: Any, batch: Batch, key_B: jax.Array | None
    ) -> tuple[jax.Array, TokenLosses]:
        """The targets (B, T) and what the model says of them."""
        token_BT, target_BT, segments_BT = shift(batch)
        x_BTW, _ = self.apply(params)(
            token_BT, segments_BT=segments_BT, key_B=key_B, method="hidden"
        )
        return target_BT, self.likelihood(params, x_BTW, target_BT)

    def loss(self, player, params, mutables, batch, key_B, step):
        """Nats per token, over the tokens that have weight. `batch["weight"]` is (B, T)."""
        _, likelihood = self._likelihood(params, batch, key_B)
        c, weight_BT = self.config, batch["weight"]
        nats_BT = training_nats(likelihood, c.label_smoothing, c.z_loss)
        metrics = {"accuracy": Mean.of(likelihood.correct, weight_BT)}
        return Mean.of(nats_BT, weight_BT), (metrics, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` in nats per token, `accuracy`, and `bits_per_byte` of the text itself."""
        target_BT, likelihood = self._likelihood(params, batch, None)
        weight_BT = batch["weight"]
        return {
            "loss": Mean.rows(likelihood.nats, weight_BT),
            "accuracy": Mean.rows(likelihood.correct, weight_BT),
            "bits_per_byte": bits_per_byte(likelihood.nats, weight_BT, self.bytes_V[target_BT]),
        }

    def variables(self, params: Params) -> Any:
        """The network's variables, as the decoding engine takes them."""
        return lora.join_variables(params)

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """Tokens (N, max_new_tokens) that follow the prompts; a stop token fills up ended rows.

        Raises:
          UserError: if learned positions do not reach that far.
        """
        o: LMSample = request.options
        return decode(
            self.model,
            lora.join_variables(params),
            key_N,
            request.init["tokens"],
            request.init["length"],
            max_new_tokens=o.max_new_tokens,
            stops=self.tokenizer.stops,
            choice=o.choice(),
            watch=request.token_callback,
        )

    def encode_prompts(self, prompts: Sequence[str], options: LMSample) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for these texts.

        Raises:
          UserError: if learned positions do not reach as far as the new tokens.
        """
        return self.encode_tokens([self.encode(text) for text in prompts], options.max_new_tokens)

    def encode_tokens(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int
    ) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for prompts of tokens, cut to what the context holds."""
        return pad_prompts([self.fit(prompt, max_new_tokens) for prompt in prompts])

    def texts(self, samples: np.ndarray, options: LMSample) -> list[str]:
        """Each sample as text behind its prompt, up to the first stop string."""
        prompts = options.prompts
        found = [self.tokenizer.decode(row) for row in samples]
        found = [before(text, options.stop) for text in found]
        return [prompts[n % len(prompts)] + text for n, text in enumerate(found)]

    def encode(self, text: str) -> np.ndarray:
        """A prompt's tokens, at least one."""
        tokens = np.concatenate([self.tokenizer.prefix, self.tokenizer.encode(text)])
        return tokens if len(tokens) else np.array([self.tokenizer.separator])

    def fit(self, tokens: np.ndarray, max_new_tokens: int) -> np.ndarray:
        """A prompt, or the end of one that is longer than the context."""
        tokens, context = tokens.astype(np.int32)[-self.model.context :], self.model.context
        total = len(tokens) + max_new_tokens
        if self.model.config.bounded and total > context:
            raise UserError(
                f"prompt and new tokens together are {total} tokens, but this model's learned"
                f" positions end at {context}: ask for fewer with --max_new_tokens"
            )
        return tokens


def before(text: str, stops: Sequence[str]) -> str:
    """The text up to where the first of some strings begins."""
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(ends, default=len(text))]


def bits_per_byte(nats_BT: jax.Array, weight_BT: jax.Array, bytes_BT: jax.Array) -> Mean:
    """Bits for the tokens that have weight, per byte of their text."""
    return Mean(Mean.rows(nats_BT, weight_BT).total / jnp.log(2.0), (bytes_BT * weight_BT).sum(-1))
