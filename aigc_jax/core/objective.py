"""The one abstraction: a family is a turn-based game of players.

A language model, a VAE or a diffusion model has one player, a GAN two. The train step plays the
turns and never asks which family it is training.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from aigc_jax.core.metrics import Mean, Metrics

Batch = dict[str, jax.Array]  # "image" and "label", or "tokens"; always "weight"


@dataclasses.dataclass(frozen=True)
class HealthCheck:
    """A sign that training goes wrong, for people to be told of; training goes on.

    Attributes:
      metric: as it is called in the records of training.
      low: the metric is well from here …
      high: … to here.
      records: in how many records in a row it must be outside.
      message: one sentence: what that means and what to do.
    """

    metric: str
    low: float
    high: float
    records: int
    message: str


class Objective(Protocol):
    """A family: the only thing to write for a new one.

    Attributes:
      turns: the players in the order in which they move within one step; a player may move more
        than once.
      num_classes: of a class-conditional model; 0 otherwise.

    An objective may also have
      alarms: a tuple of `Alarm`;
      predict(params, mutables, batch) -> {name: array (B, …)}: what it finds of each example;
      summarize({name: array (N, …)}) -> {metric: number}: what these show of a whole data set;
      reconstruct(params, mutables, batch, key_B) -> uint8 images (B, H, W, C), of an autoencoder;
    and one that can be the first stage of another model has
      latent_shape: (h, w, c) of its latents, or c codes at each of h × w places;
      num_codes: entries of its codebook; 0: its latents are continuous;
      covered: (H, W) that h × w places cover, of which the images are the middle;
      encode(params, mutables, batch, key_B) -> (B, h, w, c), float32 latents or int32 codes;
      decode(params, mutables, latent_N) -> uint8 images (N, H, W, C).
    """

    turns: tuple[str, ...]
    num_classes: int

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and mutables, `{player: …}` each, for batches shaped like `batch`.

        A player that is not among `turns` is frozen: its parameters stay as they are.
        """
        ...

    def loss(
        self,
        player: str,
        params: dict[str, Any],
        mutables: dict[str, Any],
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, dict[str, Any]]]:
        """What `player` minimises; the step differentiates it by the player's own parameters only.

        Args:
          player: whose turn it is.
          params: `{player: parameters}` of all players.
          mutables: `{player: mutables}` of all players.
          batch: arrays of leading size B; `weight` counts for nothing where it is 0.
          key_B: one random key per example. Because noise belongs to an example and not to a batch,
            a loss is the same however the batch is cut into microbatches and devices.
          step: int32 scalar, for losses with schedules.

        Returns:
          The loss as a sum with its weight, further metrics, and the mutables to go on with.
        """
        ...

    def evaluate(
        self, params: dict[str, Any], mutables: dict[str, Any], batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """Metrics of a held-out batch, `loss` among them.

        Means per example (`Mean.rows`) get a confidence interval.
        """
        ...

    def sample(
        self,
        params: dict[str, Any],
        mutables: dict[str, Any],
        key_N: jax.Array,
        request: "Request",
    ) -> jax.Array:
        """N new examples: uint8 images (N, H, W, C) or tokens (N, T).

        A sample depends on its own key and its own row of the request only, so it is the same
        whatever else is drawn beside it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Request:
    """What to sample.

    Attributes:
      options: the family's own dataclass of sampling options.
      label_N: the class of each sample; none: the family's choice.
      index_N: the number of each sample among all that are asked for; none: 0, 1, 2, …
      prompts: tokens for each sample of all to continue; none: those of the options.
      watch: looks at what has been drawn while it is drawn (`sampling.decode.Watch`).
      image_NHWC: images to begin with: uint8, or floats where the data are floats.
      mask_NHW: True where an image is to be drawn anew; none: everywhere.
      guide: another model that guides this one (`objectives.diffusion.Guide`).
    """

    options: Any
    label_N: jax.Array | None = None
    index_N: np.ndarray | None = None
    prompts: Sequence[np.ndarray] | None = None
    watch: Callable[[np.ndarray], np.ndarray] | None = None
    image_NHWC: np.ndarray | None = None
    mask_NHW: np.ndarray | None = None
    guide: Any = None

    def rows(self, num: int) -> list[int]:
        """The numbers of `num` samples."""
        return list(range(num)) if self.index_N is None else self.index_N.tolist()
