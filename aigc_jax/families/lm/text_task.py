"""Fine-tuning on a task: a class for each text, or a tag for each word.

The loss is L_LM · lm_weight + L_task · task_weight: with both, the joint loss of supervised
fine-tuning (Radford et al. 2018, equation 5).
Shapes: B batch, T tokens, W width, K classes, N samples.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core import config
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Mutables, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.lm.text_objective import EncoderNetwork, TextObjective, shift
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.ops.per_example import expand_like


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    lm_weight: float = option(0.0, low=0.0)  # of the text's own likelihood
    task_weight: float = option(1.0, low=0.0)  # λ
    label_smoothing: float = option(0.0, low=0.0, high=0.99)  # of the classes


@dataclasses.dataclass(frozen=True)
class TaskSample(config.Sample):
    num: int = option(1, low=1)
    prompts: tuple[str, ...] = option(("",), nonempty=True)  # texts to classify or to tag


class TextTask(TextObjective, abc.ABC):
    """One player, `model`: cross-entropy of the answers, in nats.

    Subclasses say what is asked of a text: `TextClassification`, `TokenTagging`.

    Args:
      config: weights of the losses.
      network: a text network with an output per class.
      spec: of the data.

    Raises:
      UserError: if the text's own likelihood is asked of a network that is not causal.
    """

    def __init__(self, config: TaskConfig, network: EncoderNetwork, spec: TextSpec):
        if config.lm_weight and not network.config.causal:
            raise UserError(
                "objective.lm_weight needs the next token hidden: set model.causal=True or"
                " objective.lm_weight=0"
            )
        super().__init__(network)
        self.config, self.spec = config, spec

    @abc.abstractmethod
    def task_features(self, x_BTW: jax.Array, real_BT: jax.Array) -> jax.Array:
        """Features for the task's head, (B, W) or (B, T, W).

        Args:
          x_BTW: the network's features.
          real_BT: False for padding.
        """

    @abc.abstractmethod
    def answers(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The true classes and which of them count, (B,) or (B, T)."""

    @abc.abstractmethod
    def describe(self, text: str, answer: np.ndarray) -> str:
        """A prompt with what has been predicted of it."""

    def _outputs(
        self, params: Params, batch: Batch, key_B: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The network's features (B, T, W), and the task's logits (B, K) or (B, T, K)."""
        token_BT, _, segments_BT = shift(batch)
        variables = self.variables(params)
        x_BTW = self.network.encode(variables, token_BT, segments_BT, key_B)
        features = self.task_features(x_BTW, batch["segments"][:, :-1] > 0)
        return x_BTW, self.network.task_logits(variables, features)

    def _task(self, logits: jax.Array, batch: Batch, smoothing: float) -> tuple[jax.Array, Mean]:
        """Nats per example (B,), the mean over its own answers; and its correct answers."""
        answer, counts = self.answers(batch)
        target = optax.smooth_labels(jax.nn.one_hot(answer, logits.shape[-1]), smoothing)
        nats = Mean.rows(_flat(optax.softmax_cross_entropy(logits, target)), _flat(counts))
        hits = Mean.rows(_flat(logits.argmax(-1) == answer), _flat(counts))
        return nats.value(), hits

    def loss(
        self,
        player: str,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, Mutables]]:
        """Nats per example; each example's losses are means over its own tokens."""
        c, weight_B = self.config, batch["weight"]
        x_BTW, logits = self._outputs(params, batch, key_B)
        task_B, hits = self._task(logits, batch, c.label_smoothing)
        loss_B = c.task_weight * task_B
        metrics = {
            "task_loss": Mean.of(task_B, weight_B),
            "accuracy": Mean.of(hits.value(), weight_B),
        }
        if c.lm_weight:
            lm_B = self._lm(params, batch, x_BTW)
            metrics["lm_loss"] = Mean.of(lm_B, weight_B)
            loss_B += c.lm_weight * lm_B
        return Mean.of(loss_B, weight_B), (metrics, mutables)

    def _lm(self, params: Params, batch: Batch, x_BTW: jax.Array) -> jax.Array:
        """Nats per token of each example's own text, (B,)."""
        _, target_BT, _ = shift(batch)
        nats_BT = self.likelihood(params, x_BTW, target_BT).nats
        return Mean.rows(nats_BT, batch["segments"][:, 1:] > 0).value()

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """`loss` in nats per example, and `accuracy` over labels or words."""
        _, logits = self._outputs(params, batch, None)
        nats_B, hits = self._task(logits, batch, 0.0)
        weight_B = batch["weight"]
        real_B = weight_B > 0
        return {
            "loss": Mean.rows(nats_B, weight_B),
            "accuracy": Mean(hits.total * real_B, hits.weight * real_B),
        }

    def predict(self, params: Params, mutables: Mutables, batch: Batch) -> dict[str, jax.Array]:
        """The likeliest classes beside the true ones, (B,) or (B, T); −1 where there is none."""
        _, logits = self._outputs(params, batch, None)
        answer, counts = self.answers(batch)
        counts &= expand_like(batch["weight"] > 0, counts)
        return {
            "predicted": jnp.where(counts, logits.argmax(-1), -1),
            "true": jnp.where(counts, answer, -1),
        }

    def encode_prompts(self, prompts: Sequence[str], options: TaskSample) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for these texts: examples without labels."""
        examples = [self.spec.example(text) for text in prompts]
        return {k: np.stack([example[k] for example in examples]) for k in examples[0]}

    def texts(self, samples: np.ndarray, options: TaskSample) -> list[str]:
        """Each prompt with its class, or with a tag at each word."""
        prompts = options.prompts
        return [self.describe(prompts[n % len(prompts)], row) for n, row in enumerate(samples)]

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """The likeliest class of each prompt (N,), or the tags of its words (N, T), −1 between."""
        return _predict(self, params, mutables, jax.tree.map(jnp.asarray, request.init))


class TextClassification(TextTask):
    """A class for each text."""

    def task_features(self, x_BTW: jax.Array, real_BT: jax.Array) -> jax.Array:
        """(B, W): the last token's if the network is causal, otherwise the mean over tokens."""
        if self.network.config.causal:  # only the last token has read the whole text
            last_B11 = jnp.maximum(real_BT.sum(1) - 1, 0)[:, None, None]
            return jnp.take_along_axis(x_BTW, last_B11, 1)[:, 0]
        count_B1 = jnp.maximum(real_BT.sum(1, keepdims=True), 1)
        return (x_BTW * real_BT[..., None]).sum(1) / count_B1

    def answers(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The class of each text (B,)."""
        return batch["label"], jnp.ones(batch["label"].shape, bool)

    def describe(self, text: str, answer: np.ndarray) -> str:
        """`class: text`."""
        return f"{self.spec.class_names[int(answer)]}: {text}"


class TokenTagging(TextTask):
    """A tag for each word, at its first token."""

    def task_features(self, x_BTW: jax.Array, real_BT: jax.Array) -> jax.Array:
        """(B, T, W): every token's."""
        return x_BTW

    def answers(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The tags (B, T), which count at the first token of each word."""
        return jnp.maximum(batch["tags"], 0), batch["tags"] >= 0

    def describe(self, text: str, answer: np.ndarray) -> str:
        """`word/tag word/tag …`."""
        tags = [self.spec.class_names[tag] for tag in answer.tolist() if tag >= 0]
        return " ".join(f"{w}/{t}" for w, t in zip(text.split(), tags, strict=False))


@functools.partial(jax.jit, static_argnums=0)
def _predict(task: TextTask, params: Params, mutables: Mutables, batch: Batch) -> jax.Array:
    return task.predict(params, mutables, batch)["predicted"]


def _flat(x: jax.Array) -> jax.Array:
    """(B,) as (B, 1); (B, T) as it is."""
    return x.reshape(x.shape[0], -1)
