"""Masked language modelling: predict masked tokens (Devlin et al. 2019).

Shapes: B batch, T tokens, V vocabulary, W width, N samples, P tokens of a text to fill in.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import config
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Mutables, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.lm.language_model import training_nats
from aigc_jax.families.lm.text_objective import (
    EncoderNetwork,
    TextObjective,
    Tokenizer,
    shift,
)
from aigc_jax.inference.decoder_network import Variables
from aigc_jax.inference.prompts import bucket
from aigc_jax.inference.sampling_params import SamplingParams, sample_tokens
from aigc_jax.ops.cross_entropy import TokenLosses
from aigc_jax.ops.random import fold, uniform

MASK = "[MASK]"  # in a prompt: one token to fill in


@dataclasses.dataclass(frozen=True)
class MaskedLMConfig:
    mask_rate: float = option(0.15, low=0.01, high=1.0)  # share of tokens to predict
    keep_rate: float = option(0.1, low=0.0, high=1.0)  # share of these that is left as it is
    random_rate: float = option(0.1, low=0.0, high=1.0)  # … that is random instead
    label_smoothing: float = option(0.0, low=0.0, high=0.99)
    z_loss: float = option(0.0, low=0.0)

    def __post_init__(self):
        if self.keep_rate + self.random_rate > 1:
            raise UserError("objective.keep_rate and objective.random_rate are together above 1")


@dataclasses.dataclass(frozen=True)
class MaskedLMSample(config.Sample):
    num: int = option(4, low=1)
    prompts: tuple[str, ...] = option((MASK * 32,), nonempty=True)  # each [MASK] is one token
    temperature: float = option(
        1.0, low=0.0, flag="Softmax temperature; 0: the most probable token (greedy)."
    )
    top_k: int = option(0, low=0, flag="Draw from the k most probable tokens only; 0: off.")
    top_p: float = option(
        1.0,
        low=0.0,
        high=1.0,
        flag="Nucleus sampling (Holtzman et al. 2020): draw from the fewest tokens whose"
        " probabilities sum to this; 1: off.",
    )


class MaskedLanguageModel(TextObjective):
    """One player, `model`: cross-entropy of masked tokens, given those on both sides.

    Args:
      config: the masking, and the loss.
      network: a text network without causal mask.
      tokenizer: of its tokens.
      mask: the mask token.

    Raises:
      UserError: if the network is causal.
    """

    def __init__(
        self, config: MaskedLMConfig, network: EncoderNetwork, tokenizer: Tokenizer, mask: int
    ):
        if network.config.causal:
            raise UserError(
                "objective.name='masked_lm' reads the text on both sides of a masked token: set"
                " model.causal=False (a transformer only)"
            )
        super().__init__(network)
        self.config, self.tokenizer, self.mask = config, tokenizer, mask

    def _texts(self, batch: Batch) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """Tokens, documents and weights of the T tokens that are read."""
        token_BT, _, segments_BT = shift(batch)
        # weight[t] is that of token t + 1; a document's first token is only read.
        return token_BT, segments_BT, jnp.pad(batch["weight"], ((0, 0), (1, 0)))[:, :-1]

    def mask_tokens(self, token_BT: jax.Array, key_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The text with some tokens masked, and which are to be predicted (B, T)."""
        c, shape = self.config, token_BT.shape[1:]
        chosen_BT = uniform(fold(key_B, 0), shape) < c.mask_rate
        how_BT = uniform(fold(key_B, 1), shape)
        other_BT = (uniform(fold(key_B, 2), shape) * self.tokenizer.size).astype(jnp.int32)
        shown_BT = jnp.where(how_BT < c.keep_rate + c.random_rate, other_BT, self.mask)
        shown_BT = jnp.where(how_BT < c.keep_rate, token_BT, shown_BT)
        return jnp.where(chosen_BT, shown_BT, token_BT), chosen_BT

    def _likelihood(
        self, params: Params, batch: Batch, mask_key_B: jax.Array, key_B: jax.Array | None
    ) -> tuple[TokenLosses, jax.Array]:
        """The likelihood of the masked tokens, and the weight of each (B, T).

        Args:
          params: of all players.
          batch: texts.
          mask_key_B: keys of what is masked.
          key_B: dropout keys; None: no dropout.
        """
        token_BT, segments_BT, weight_BT = self._texts(batch)
        masked_BT, chosen_BT = self.mask_tokens(token_BT, mask_key_B)
        x_BTW = self.network.encode(self.variables(params), masked_BT, segments_BT, key_B)
        return self.likelihood(params, x_BTW, token_BT), weight_BT * chosen_BT

    def loss(
        self,
        player: str,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, Mutables]]:
        """Nats per masked token."""
        found, weight_BT = self._likelihood(params, batch, key_B, fold(key_B, 3))
        c = self.config
        nats_BT = training_nats(found, c.label_smoothing, c.z_loss)
        metrics = {"accuracy": Mean.of(found.correct, weight_BT)}
        return Mean.of(nats_BT, weight_BT), (metrics, mutables)

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """`loss` in nats per masked token, and `accuracy`; the masking is fixed per example."""
        found, weight_BT = self._likelihood(params, batch, key_B, None)
        return {
            "loss": Mean.rows(found.nats, weight_BT),
            "accuracy": Mean.rows(found.correct, weight_BT),
        }

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """Texts as tokens (N, P) with their masks filled in, the most confident one first."""
        o: MaskedLMSample = request.options
        sampling = SamplingParams(o.temperature, o.top_k, o.top_p).as_arrays(key_N.shape[0])
        init, variables = request.init, self.variables(params)
        arguments = key_N, init["tokens"], init["length"], sampling
        return _fill_masks(self.network, self.mask, variables, *arguments)

    def encode_prompts(
        self, prompts: Sequence[str], options: MaskedLMSample
    ) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for these texts: "tokens" (N, P) and "length" (N,).

        Raises:
          UserError: if a prompt is empty or longer than the context.
        """
        texts = [self._prompt(text) for text in prompts]
        padded = min(bucket(max(map(len, texts))), self.network.context)
        token_NP = np.full((len(texts), padded), self.tokenizer.separator, np.int32)
        for row, text in zip(token_NP, texts, strict=True):
            row[: len(text)] = text
        return {"tokens": token_NP, "length": np.array([len(text) for text in texts], np.int32)}

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
        if not 0 < len(tokens) <= self.network.context:
            raise UserError(
                f"a prompt has {len(tokens)} tokens, but this model reads 1 to"
                f" {self.network.context}: change it"
            )
        return np.array(tokens, np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fill_masks(
    network: EncoderNetwork,
    mask: int,
    variables: Variables,
    key_N: jax.Array,
    token_NP: jax.Array,
    length_N: jax.Array,
    sampling: SamplingParams,
) -> jax.Array:
    """Fills one mask of each row per iteration: the one of which the model is most confident."""
    row_N = jnp.arange(token_NP.shape[0])
    segments_NP = (jnp.arange(token_NP.shape[1]) < length_N[:, None]).astype(jnp.int32)
    Carry = tuple[jax.Array, jax.Array]  # iteration, tokens

    def unfinished(carry: Carry) -> jax.Array:
        return (carry[1] == mask).any()

    def body(carry: Carry) -> Carry:
        t, token_NP = carry
        x_NPW = network.encode(variables, token_NP, segments_NP)
        logits_NPV = network.vocab_logits(variables, x_NPW).at[..., mask].set(-jnp.inf)
        masked_NP = token_NP == mask
        confidence_NP = jax.nn.log_softmax(logits_NPV).max(-1)
        at_N = jnp.where(masked_NP, confidence_NP, -jnp.inf).argmax(-1)
        logits_NV = logits_NPV[row_N, at_N]
        key = jax.vmap(jax.random.fold_in, (0, None))(key_N, t)
        drawn_N = sample_tokens(key, logits_NV, jnp.zeros(logits_NV.shape, bool), sampling)
        new_N = jnp.where(masked_NP.any(-1), drawn_N, token_NP[row_N, at_N])
        return t + 1, token_NP.at[row_N, at_N].set(new_N)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), jnp.asarray(token_NP)))[1]
