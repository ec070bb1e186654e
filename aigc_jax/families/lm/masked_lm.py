"""Masked language modelling: predict tokens that were hidden (Devlin et al. 2019).

Shapes: B batch, T tokens, V vocabulary, N samples, P tokens of a text to fill in.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import config
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Batch
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.language_model import training_nats
from aigc_jax.families.lm.text_objective import TextObjective, Tokenizer, shift
from aigc_jax.inference.engine import SamplingParams, bucket, draw
from aigc_jax.ops.random import fold, uniform

MASK = "[MASK]"  # stands in a prompt for one token to fill in


@dataclasses.dataclass(frozen=True)
class MaskedLMConfig:
    mask_rate: float = option(0.15, low=0.01, high=1.0)  # share of tokens to predict
    keep_rate: float = option(0.1, low=0.0, high=1.0)  # of these, so many are shown as they are
    random_rate: float = option(0.1, low=0.0, high=1.0)  # and so many as another token
    label_smoothing: float = option(0.0, low=0.0, high=0.99)
    z_loss: float = option(0.0, low=0.0)

    def __post_init__(self):
        if self.keep_rate + self.random_rate > 1:
            raise UserError("objective.keep_rate and objective.random_rate are together above 1")


@dataclasses.dataclass(frozen=True)
class MaskedLMSample(config.Sample):
    num: int = option(4, low=1)
    prompts: tuple[str, ...] = option((MASK * 32,), nonempty=True)  # each [MASK] is one token
    temperature: float = option(1.0, low=0.0)  # 0: the likeliest token
    top_k: int = option(0, low=0)
    top_p: float = option(1.0, low=0.0, high=1.0)


class MaskedLanguageModel(TextObjective):
    """One player, `model`: cross-entropy of hidden tokens, given those on both sides.

    Args:
      config: what is hidden, and the loss.
      model: a text model without causal mask.
      tokenizer: of its tokens.
      mask: the token that stands for a hidden one.
    """

    def __init__(self, config: MaskedLMConfig, model: Any, tokenizer: Tokenizer, mask: int):
        if model.config.causal:
            raise UserError(
                "objective.name='masked_lm' reads the text on both sides of a hidden token: set"
                " model.causal=False (a transformer only)"
            )
        super().__init__(model)
        self.config, self.tokenizer, self.mask = config, tokenizer, mask

    def _texts(self, batch: Batch) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """Tokens, documents and weights of the T tokens that are read."""
        token_BT, _, segments_BT = shift(batch)
        # weight[t] is that of token t + 1; a document's first token is only read.
        return token_BT, segments_BT, jnp.pad(batch["weight"], ((0, 0), (1, 0)))[:, :-1]

    def hide(self, token_BT: jax.Array, key_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The text with some tokens hidden, and which are to be predicted (B, T)."""
        c, shape = self.config, token_BT.shape[1:]
        chosen_BT = uniform(fold(key_B, 0), shape) < c.mask_rate
        how_BT = uniform(fold(key_B, 1), shape)
        other_BT = (uniform(fold(key_B, 2), shape) * self.tokenizer.size).astype(jnp.int32)
        shown_BT = jnp.where(how_BT < c.keep_rate + c.random_rate, other_BT, self.mask)
        shown_BT = jnp.where(how_BT < c.keep_rate, token_BT, shown_BT)
        return jnp.where(chosen_BT, shown_BT, token_BT), chosen_BT

    def _likelihood(self, params: Any, batch: Batch, hiding_B: jax.Array, key_B: jax.Array | None):
        token_BT, segments_BT, weight_BT = self._texts(batch)
        hidden_BT, chosen_BT = self.hide(token_BT, hiding_B)
        x_BTW, _ = self.apply(params)(
            hidden_BT, segments_BT=segments_BT, key_B=key_B, method="hidden"
        )
        return self.likelihood(params, x_BTW, token_BT), weight_BT * chosen_BT

    def loss(self, player, params, mutables, batch, key_B, step):
        """Nats per hidden token."""
        found, weight_BT = self._likelihood(params, batch, key_B, fold(key_B, 3))
        c = self.config
        nats_BT = training_nats(found, c.label_smoothing, c.z_loss)
        metrics = {"accuracy": Mean.of(found.correct, weight_BT)}
        return Mean.of(nats_BT, weight_BT), (metrics, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` in nats per hidden token and `accuracy`; what is hidden is fixed per example."""
        found, weight_BT = self._likelihood(params, batch, key_B, None)
        return {
            "loss": Mean.rows(found.nats, weight_BT),
            "accuracy": Mean.rows(found.correct, weight_BT),
        }

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """Texts as tokens (N, P) with their masks filled in, the surest one first.

        Raises:
          UserError: if a prompt is longer than the context, or of nothing.
        """
        o: MaskedLMSample = request.options
        choice = SamplingParams(o.temperature, o.top_k, o.top_p).traced()
        variables = lora.join_variables(params)
        return _fill(
            self.model,
            self.mask,
            variables,
            key_N,
            request.init["tokens"],
            request.init["segments"],
            choice,
        )

    def encode_prompts(
        self, prompts: Sequence[str], options: MaskedLMSample
    ) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for these texts: "tokens" and "segments" (N, P), 0 for padding."""
        texts = [self._prompt(text) for text in prompts]
        padded = min(bucket(max(map(len, texts))), self.model.context)
        token_NP = np.full((len(texts), padded), self.tokenizer.separator, np.int32)
        segments_NP = np.zeros((len(texts), padded), np.int32)
        for n, text in enumerate(texts):
            token_NP[n, : len(text)], segments_NP[n, : len(text)] = text, 1
        return {"tokens": token_NP, "segments": segments_NP}

    def texts(self, samples: np.ndarray, options: MaskedLMSample) -> list[str]:
        """Each sample as text."""
        # Not `decode`: the token before a text may be the one that ends another.
        return [self.tokenizer.text(row.tolist()) for row in samples]

    def _prompt(self, text: str) -> np.ndarray:
        parts = [self.tokenizer.encode(part) for part in text.split(MASK)]
        tokens = list(self.tokenizer.prefix) + parts[0].tolist()
        for part in parts[1:]:
            tokens += [self.mask, *part.tolist()]
        tokens += self.tokenizer.suffix
        if not 0 < len(tokens) <= self.model.context:
            raise UserError(
                f"a prompt has {len(tokens)} tokens, but this model reads 1 to"
                f" {self.model.context}: change it"
            )
        return np.array(tokens, np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fill(model, mask, variables, key_N, token_NP, segments_NP, choice):
    """Draws one hidden token per turn and row: the one of which the model is surest."""
    rows = jnp.arange(token_NP.shape[0])

    def going(carry):
        return (carry[1] == mask).any()

    def body(carry):
        t, token_NP = carry
        x_NPW, _ = model.apply(variables, token_NP, segments_BT=segments_NP, method="hidden")
        logits_NPV = model.apply(variables, x_NPW, method="logits")
        logits_NPV = logits_NPV.at[..., mask].set(-jnp.inf)
        open_NP = token_NP == mask
        sure_NP = jnp.where(open_NP, jax.nn.log_softmax(logits_NPV).max(-1), -jnp.inf)
        at_N = sure_NP.argmax(-1)
        logits_NV = logits_NPV[rows, at_N]
        key = jax.vmap(jax.random.fold_in, (0, None))(key_N, t)
        drawn_N = draw(key, logits_NV, jnp.zeros(logits_NV.shape, bool), choice)
        new_N = jnp.where(open_NP.any(-1), drawn_N, token_NP[rows, at_N])
        return t + 1, token_NP.at[rows, at_N].set(new_N)

    return jax.lax.while_loop(going, body, (jnp.int32(0), jnp.asarray(token_NP)))[1]
