"""The one abstraction: a family is a turn-based game of players.

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
Mutables = dict[str, Any]  # {player: what a loss updates besides parameters}


@dataclasses.dataclass(frozen=True)
class HealthCheck:
    """A range that a metric leaves when training goes wrong; people are warned, training continues.

    Attributes:
      metric: its name in the records of training.
      low: the lowest healthy value.
      high: the highest healthy value.
      records: consecutive records outside the range before the warning.
      message: one sentence: what that means and what to do.
    """

    metric: str
    low: float
    high: float
    records: int
    message: str


class Objective(Protocol):
    """A family: the only thing to write for a new one.

    Subclass it to inherit the defaults. What an objective can do beside this is declared in
    `core/capabilities.py`.

    Attributes:
      turns: the players in the order in which they move within one step; a player may move more
        than once. A player that is not among them is frozen.
      conditions: what a sample can be given, by name: `{"label": ClassLabel(10)}`.
    """

    turns: tuple[str, ...]
    conditions: dict[str, ConditionSpec] = {}  # noqa: RUF012 (a default that nobody changes)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        """Parameters and mutables, `{player: …}` each, for batches shaped like `batch`."""
        ...

    def prepare(
        self,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> Batch:
        """The batch as the losses see it; called once per step, outside every gradient.

        Frozen players work here: latents of a first stage, text embeddings, teacher logits.
        Evaluation calls it once per batch, too.

        Args:
          params: `{player: parameters}` of all players.
          mutables: `{player: mutables}` of all players.
          batch: arrays of leading size B.
          key_B: one random key per example, of its own: no turn has the same.
          step: int32 scalar; 0 in evaluation.

        Returns:
          Arrays of leading size B, `weight` among them.
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
        """The loss of `player`, which the step differentiates by the player's own parameters only.

        Args:
          player: whose turn it is.
          params: `{player: parameters}` of all players.
          mutables: `{player: mutables}` of all players.
          batch: from `prepare`; an example whose `weight` is 0 counts for nothing.
          key_B: one random key per example. Because noise belongs to an example and not to a batch,
            a loss is the same however the batch is cut into microbatches and devices.
          step: int32 scalar, for losses with schedules.

        Returns:
          The loss as a sum with its weight, further metrics, and the updated mutables.
        """
        ...

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """Metrics of a held-out batch from `prepare`, `loss` among them.

        Means per example (`Mean.rows`) get a confidence interval.
        """
        ...

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """N new examples, such as uint8 images (N, H, W, C) or tokens (N, T).

        A sample depends on its own key and its own row of the request only, so it is the same
        whatever else is drawn beside it.
        """
        ...
