"""Objective: a family as a turn-based game of players.

A language model, a VAE or a diffusion model has one player, a GAN two. The train step plays the
turns and never asks which family it is training.
"""

import dataclasses
from typing import Any, Protocol

import jax

from aigc_jax.core.conditions import ConditionSpec
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.request import SampleRequest

Batch = dict[str, jax.Array]  # fields of B examples each; always "weight"
Params = dict[str, Any]  # {player: its parameters}
Mutables = dict[str, Any]  # {player: non-trainable state that a loss updates}


@dataclasses.dataclass(frozen=True)
class HealthCheck:
    """Healthy range of a metric. Outside it the run warns and continues.

    Attributes:
      metric: its name in training records.
      low: the lowest healthy value.
      high: the highest healthy value.
      records: consecutive records outside the range before the warning.
      message: one sentence: the likely cause and what to do.
    """

    metric: str
    low: float
    high: float
    records: int
    message: str


class Objective(Protocol):
    """Interface of a family: players, losses, evaluation and sampling.

    Subclass it to inherit the defaults. Optional capabilities are declared in
    `core/capabilities.py`.

    Attributes:
      turns: the players in the order in which they move within one step; a player may move more
        than once. A player that is not among them is frozen.
      conditions: conditions of a sample by name: `{"label": ClassLabel(10)}`.
    """

    turns: tuple[str, ...]
    conditions: dict[str, ConditionSpec] = {}  # noqa: RUF012 (never mutated)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        """Returns parameters and mutables, `{player: …}` each, for batches shaped like `batch`."""
        ...

    def prepare(
        self,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> Batch:
        """Returns the batch for the losses; called once per step, outside every gradient.

        Frozen players work here: latents of a first stage, text embeddings, teacher logits.
        Evaluation calls it once per batch, too.

        Args:
          params: `{player: parameters}` of all players.
          mutables: `{player: mutables}` of all players.
          batch: arrays of leading size B.
          key_B: one random key per example, different from the keys of every turn.
          step: int32 scalar; 0 in evaluation.

        Returns:
          Arrays of leading size B, including `weight`.
        """
        return batch

    def loss(
        self,
        player: str,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, Mutables]]:
        """Returns the loss of `player`, differentiated by that player's parameters only.

        Args:
          player: whose turn it is.
          params: `{player: parameters}` of all players.
          mutables: `{player: mutables}` of all players.
          batch: from `prepare`; an example whose `weight` is 0 does not contribute.
          key_B: one random key per example. Because noise belongs to an example and not to a batch,
            a loss is the same however the batch is cut into microbatches and devices.
          step: int32 scalar, for losses with schedules.

        Returns:
          The loss as a weighted sum, further metrics, and the updated mutables.
        """
        ...

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """Returns metrics, including `loss`, of a held-out batch from `prepare`.

        Means per example (`Mean.rows`) get a confidence interval.
        """
        ...

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """Returns N samples, such as uint8 images (N, H, W, C) or tokens (N, T).

        A sample depends on its own key and its own row of the request only, not on the rest of
        the batch.
        """
        ...
