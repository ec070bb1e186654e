"""Fine-tuning on a task: a class for each text, or a tag for each word.

The loss is L_LM · lm_weight + L_task · task_weight: with both, the joint loss of supervised
fine-tuning (Radford et al. 2018, equation 5).
Shapes: B batch, T tokens, W width, K classes, N samples.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core import config
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Batch
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.lm.text_objective import TextObjective, shift


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    lm_weight: float = option(0.0, low=0.0)  # of the text's own likelihood
    task_weight: float = option(1.0, low=0.0)  # λ
    label_smoothing: float = option(0.0, low=0.0, high=0.99)  # of the classes


@dataclasses.dataclass(frozen=True)
class TaskSample(config.Sample):
    num: int = option(1, low=1)
    prompts: tuple[str, ...] = option(("",), nonempty=True)  # texts to classify or to tag


class TextTask(TextObjective):
    """One player, `model`: cross-entropy of the classes, in nats.

    Args:
      config: the weights of the losses.
      model: a text model with an output per class.
      spec: what the data look like (`data.spec.TextSpec`): its `form` is "labels" or "tags".
    """

    def __init__(self, config: TaskConfig, model: Any, spec: Any):
        if config.lm_weight and not model.config.causal:
            raise UserError(
                "objective.lm_weight needs the next token hidden: set model.causal=True or"
                " objective.lm_weight=0"
            )
        super().__init__(model)
        self.config, self.spec = config, spec

    def _outputs(self, params: Any, batch: Batch, key_B: jax.Array | None):
        """What the heads read (B, T, W), and the task's logits: (B, K), or (B, T, K) for tags."""
        token_BT, _, segments_BT = shift(batch)
        apply = self.apply(params)
        x_BTW, _ = apply(token_BT, segments_BT=segments_BT, key_B=key_B, method="hidden")
        if self.spec.format == "tags":
            return x_BTW, apply(x_BTW, method="task_logits")
        real_BT = segments_BT > 0
        if self.model.config.causal:  # only the last token has read the whole text
            last_B11 = jnp.maximum(real_BT.sum(1) - 1, 0)[:, None, None]
            pooled_BW = jnp.take_along_axis(x_BTW, last_B11, 1)[:, 0]
        else:
            count_B1 = jnp.maximum(real_BT.sum(1, keepdims=True), 1)
            pooled_BW = (x_BTW * real_BT[..., None]).sum(1) / count_B1
        return x_BTW, apply(pooled_BW, method="task_logits")

    def _answers(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The true classes and which count: (B,), or (B, T) for tags."""
        if self.spec.format == "tags":
            return jnp.maximum(batch["tags"], 0), batch["tags"] >= 0
        return batch["label"], jnp.ones(batch["label"].shape, bool)

    def _task(self, logits: jax.Array, batch: Batch, smoothing: float):
        """Nats and hits per example (B,): means over its own answers; and whether it has any."""
        answer, counts = self._answers(batch)
        target = optax.smooth_labels(jax.nn.one_hot(answer, logits.shape[-1]), smoothing)
        nats = Mean.rows(_flat(optax.softmax_cross_entropy(logits, target)), _flat(counts))
        hits = Mean.rows(_flat(logits.argmax(-1) == answer), _flat(counts))
        return nats.value(), hits

    def loss(self, player, params, mutables, batch, key_B, step):
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

    def _lm(self, params: Any, batch: Batch, x_BTW: jax.Array) -> jax.Array:
        """Nats per token of each example's own text, (B,)."""
        _, target_BT, _ = shift(batch)
        nats_BT = self.likelihood(params, x_BTW, target_BT).nats
        return Mean.rows(nats_BT, batch["segments"][:, 1:] > 0).value()

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` in nats per example, and `accuracy` over labels or words."""
        _, logits = self._outputs(params, batch, None)
        nats_B, hits = self._task(logits, batch, 0.0)
        weight_B = batch["weight"]
        real_B = weight_B > 0
        return {
            "loss": Mean.rows(nats_B, weight_B),
            "accuracy": Mean(hits.total * real_B, hits.weight * real_B),
        }

    def predict(self, params: Any, mutables: Any, batch: Batch) -> dict[str, jax.Array]:
        """The likeliest classes beside the true ones, (B,) or (B, T); −1 where there is none."""
        _, logits = self._outputs(params, batch, None)
        answer, counts = self._answers(batch)
        counts &= _like(batch["weight"] > 0, counts)
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
        names, found = self.spec.class_names, []
        for n, row in enumerate(samples):
            text = options.prompts[n % len(options.prompts)]
            if self.spec.format == "labels":
                found.append(f"{names[int(row)]}: {text}")
                continue
            tags = [names[tag] for tag in row.tolist() if tag >= 0]
            found.append(" ".join(f"{w}/{t}" for w, t in zip(text.split(), tags, strict=False)))
        return found

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """The likeliest class of each prompt (N,), or the tags of its words (N, T), −1 between."""
        return _predict(self, params, mutables, jax.tree.map(jnp.asarray, request.init))


@functools.partial(jax.jit, static_argnums=0)
def _predict(task: TextTask, params: Any, mutables: Any, batch: Batch) -> jax.Array:
    return task.predict(params, mutables, batch)["predicted"]


def _flat(x: jax.Array) -> jax.Array:
    """(B,) as (B, 1); (B, T) as it is."""
    return x.reshape(x.shape[0], -1)


def _like(x_B: jax.Array, other: jax.Array) -> jax.Array:
    """(B,) spread over the shape of another."""
    return x_B.reshape(-1, *[1] * (other.ndim - 1))
