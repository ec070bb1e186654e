"""Language modelling: predict the next token.

Shapes: B batch, T tokens, V vocabulary, W width, N samples.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import config
from aigc_jax.core.conditions import ConditionSpec, conditions_of
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Mutables, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.text_network import TextNetwork
from aigc_jax.families.lm.text_objective import TextObjective, Tokenizer, shift
from aigc_jax.inference.decode import decode
from aigc_jax.inference.engine import Engine
from aigc_jax.inference.prompts import pad_prompts
from aigc_jax.inference.sampling_params import SamplingParams
from aigc_jax.inference.stop_strings import truncate_at_stop
from aigc_jax.ops.cross_entropy import TokenLosses


@dataclasses.dataclass(frozen=True)
class LMConfig:
    z_loss: float = option(0.0, low=0.0)  # weight of log² Z, which keeps logits from drifting
    label_smoothing: float = option(0.0, low=0.0, high=0.99)  # share spread over the vocabulary


@dataclasses.dataclass(frozen=True)
class LMSample(config.Sample):
    num: int = option(4, low=1)
    prompts: tuple[str, ...] = option(("",), nonempty=True)  # continued in turn
    max_new_tokens: int = option(256, low=1, flag="Maximum number of tokens to generate.")
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
    min_p: float = option(
        0.0,
        low=0.0,
        high=1.0,
        flag="Drop tokens less probable than this share of the most probable one; 0: off.",
    )
    repetition_penalty: float = option(
        1.0,
        low=0.01,
        flag="Above 1: repeated tokens become less probable (Keskar et al. 2019); 1: off.",
    )
    stop: tuple[str, ...] = option((), flag="Stop string: the text ends before it. Repeatable.")

    def sampling_params(self) -> SamplingParams:
        return SamplingParams(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty
        )


def training_nats(likelihood: TokenLosses, label_smoothing: float, z_loss: float) -> jax.Array:
    """The loss of each token (B, T): smoothed cross-entropy and z-loss (de Brébisson 2016)."""
    nats = likelihood.nats
    if label_smoothing:
        nats = (1 - label_smoothing) * nats + label_smoothing * likelihood.smooth
    return nats + z_loss * likelihood.log_z**2 if z_loss else nats


class LanguageModel(TextObjective):
    """One player, `model`: cross-entropy of the next token.

    Args:
      config: the loss.
      network: a causal text network.
      tokenizer: of its tokens.
      conditions: that the network has embedders of, by name.

    Raises:
      UserError: if the network is not causal.
    """

    network: TextNetwork

    def __init__(
        self,
        config: LMConfig,
        network: TextNetwork,
        tokenizer: Tokenizer,
        conditions: Mapping[str, ConditionSpec] | None = None,
    ):
        if not network.config.causal:
            raise UserError(
                "objective.name='lm' predicts the next token, which model.causal=False shows it:"
                " set model.causal=True, or objective.name='masked_lm'"
            )
        super().__init__(network)
        self.config, self.tokenizer = config, tokenizer
        self.context, self.bounded = network.context, network.config.bounded
        self.conditions = dict(conditions or {})
        lengths = tokenizer.byte_lengths()  # entries of the vocabulary beyond it are in no text
        padding = (0, network.vocab_size - len(lengths))
        self.bytes_V = jnp.asarray(np.pad(lengths, padding), jnp.float32)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        """Fresh parameters; there are no mutables."""
        if not self.conditions:
            return super().init(rng, batch)
        given = jax.tree.map(lambda x: x[:1], conditions_of(batch, self.conditions))
        variables = self.network.init(rng, batch["tokens"][:1, :-1], conditions=given)
        return lora.split_variables(variables), {}

    def _likelihood(
        self, params: Params, batch: Batch, key_B: jax.Array | None
    ) -> tuple[jax.Array, TokenLosses]:
        """The targets (B, T), and their likelihood."""
        token_BT, target_BT, segments_BT = shift(batch)
        given = conditions_of(batch, self.conditions)
        x_BTW = self.network.encode(self.variables(params), token_BT, segments_BT, key_B, given)
        return target_BT, self.likelihood(params, x_BTW, target_BT)

    def loss(
        self,
        player: str,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, Mutables]]:
        """Nats per token, over the tokens that have weight. `batch["weight"]` is (B, T)."""
        _, likelihood = self._likelihood(params, batch, key_B)
        c, weight_BT = self.config, batch["weight"]
        nats_BT = training_nats(likelihood, c.label_smoothing, c.z_loss)
        metrics = {"accuracy": Mean.of(likelihood.correct, weight_BT)}
        return Mean.of(nats_BT, weight_BT), (metrics, mutables)

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """`loss` in nats per token, `accuracy`, and `bits_per_byte` of the text itself."""
        target_BT, likelihood = self._likelihood(params, batch, None)
        weight_BT = batch["weight"]
        return {
            "loss": Mean.rows(likelihood.nats, weight_BT),
            "accuracy": Mean.rows(likelihood.correct, weight_BT),
            "bits_per_byte": bits_per_byte(likelihood.nats, weight_BT, self.bytes_V[target_BT]),
        }

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """Tokens (N, max_new_tokens) that follow the prompts; a stop token pads ended rows.

        Raises:
          UserError: if learned positions do not reach that far.
        """
        o: LMSample = request.options
        return decode(
            self.network,
            self.variables(params),
            key_N,
            request.init["tokens"],
            request.init["length"],
            max_new_tokens=o.max_new_tokens,
            stops=self.tokenizer.stops,
            sampling=o.sampling_params(),
            callback=request.token_callback,
            conditions=request.conditions or None,
        )

    def engine(
        self,
        params: Params,
        slots: int,
        length: int,
        max_new_tokens: int,
        stops: Sequence[int] | None = None,
    ) -> Engine:
        """The decoding engine of this model; see `SupportsTextGeneration`."""
        return Engine(
            self.network,
            self.variables(params),
            slots=slots,
            length=length,
            max_new_tokens=max_new_tokens,
            stops=self.tokenizer.stops if stops is None else stops,
        )

    def decoding_bytes(self, params: Params, batch: int, length: int) -> float:
        """The least bytes that one step of decoding reads."""
        return self.network.decoding_bytes(self.variables(params), batch, length)

    def encode_prompts(self, prompts: Sequence[str], options: LMSample) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for these texts; see `encode_tokens`."""
        return self.encode_tokens([self._encode(text) for text in prompts], options.max_new_tokens)

    def encode_tokens(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int
    ) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for prompts of tokens, cut to the end of what the context holds.

        Raises:
          UserError: if learned positions do not reach as far as the new tokens.
        """
        return pad_prompts([self._fit(prompt, max_new_tokens) for prompt in prompts])

    def texts(self, samples: np.ndarray, options: LMSample) -> list[str]:
        """Each sample as text behind its prompt, up to the first stop string."""
        prompts, texts = options.prompts, [self.tokenizer.decode(row) for row in samples]
        return [
            prompts[n % len(prompts)] + truncate_at_stop(text, options.stop)
            for n, text in enumerate(texts)
        ]

    def _encode(self, text: str) -> np.ndarray:
        """A prompt's tokens, at least one."""
        tokens = np.concatenate([self.tokenizer.prefix, self.tokenizer.encode(text)])
        return tokens if len(tokens) else np.array([self.tokenizer.separator])

    def _fit(self, tokens: np.ndarray, max_new_tokens: int) -> np.ndarray:
        """A prompt, or the end of one that is longer than the context."""
        tokens = tokens.astype(np.int32)[-self.context :]
        total = len(tokens) + max_new_tokens
        if self.bounded and total > self.context:
            raise UserError(
                f"prompt and new tokens together are {total} tokens, but this model's learned"
                f" positions end at {self.context}: ask for fewer with --max_new_tokens"
            )
        return tokens


def bits_per_byte(nats_BT: jax.Array, weight_BT: jax.Array, bytes_BT: jax.Array) -> Mean:
    """Bits of the tokens that have weight, per byte of their text."""
    return Mean(Mean.rows(nats_BT, weight_BT).total / jnp.log(2.0), (bytes_BT * weight_BT).sum(-1))
