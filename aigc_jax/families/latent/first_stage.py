"""The frozen first stage: an autoencoder in whose latents or codes another objective works.

The autoencoder is a player without turns, `first_stage`: its parameters are part of the run's state
and checkpoints, and nothing trains them. `prepare` encodes a batch once per step, and samples are
decoded (Rombach et al. 2022; van den Oord et al. 2017), so the inner objective knows nothing of it.

Shapes: B batch, c latent channels or codes per place.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core.capabilities import SupportsFirstStage
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.modality import ArraySpec, Spec, modelled_field
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.distributed.logical_axes import unsharded

PLAYER = "first_stage"
LATENT_STD = 0.5  # of normalised latents: about that of pixels in [−1, 1], which defaults suit


class LatentSpaceObjective(Objective, abc.ABC):
    """An objective in the latent space of a frozen autoencoder.

    `ContinuousLatentObjective` and `TokenSequenceObjective` say what the inner objective reads.

    Args:
      objective: the inner one, of latents or codes.
      stage: the autoencoder.
      spec: of the data that the autoencoder encodes.

    Attributes:
      latent_spec: of the data that the inner objective models.
    """

    def __init__(self, objective: Objective, stage: SupportsFirstStage, spec: ArraySpec):
        self.objective, self.stage, self.spec = objective, stage, spec
        self.latent_spec = self.latent_spec_of(stage, spec)
        self.field = modelled_field(spec)
        self.turns, self.conditions = objective.turns, objective.conditions
        self._decode = jax.jit(lambda params, latent_N: self._stage(stage.decode, params, latent_N))

    @staticmethod
    @abc.abstractmethod
    def latent_spec_of(stage: SupportsFirstStage, spec: ArraySpec) -> Spec:
        """The spec of what `encode_batch` makes of data like `spec`."""

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        """Parameters of the inner objective, and zeros for the frozen player (`init_frozen`)."""
        size = batch["weight"].shape[0]
        example = jax.tree.map(jnp.asarray, self.latent_spec.example_batch(size))
        params, mutables = self.objective.init(rng, example)
        stage_params, stage_mutables = jax.eval_shape(self.stage.init, rng, batch)
        per_channel = jax.ShapeDtypeStruct(self.stage.latent_shape[-1:], jnp.float32)
        empty = {
            "params": stage_params,
            "mutables": unsharded(stage_mutables),
            "shift": per_channel,
            "scale": per_channel,
        }
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), empty)
        return {**params, PLAYER: zeros}, mutables

    def init_frozen(self, params: Params, mutables: Mutables, batch: Batch) -> dict[str, Any]:
        """The frozen player, `{"params", "mutables", "shift", "scale"}`, of a trained autoencoder.

        Args:
          params: of the autoencoder, `{player: …}`.
          mutables: of the autoencoder.
          batch: examples; over all of them, normalised latents have mean 0 and standard deviation
            `LATENT_STD` in each channel. Codes are not normalised.
        """
        channels = self.stage.latent_shape[-1]
        shift, scale = jnp.zeros(channels), jnp.ones(channels)
        if not self.stage.num_codes:
            key_B = jax.random.split(jax.random.key(0), batch["weight"].shape[0])
            latent = jax.jit(self.stage.encode)(params, mutables, batch, key_B)
            axes = tuple(range(latent.ndim - 1))
            shift, scale = latent.mean(axes), LATENT_STD / (latent.std(axes) + 1e-6)
        return {"params": params, "mutables": mutables, "shift": shift, "scale": scale}

    def _stage(self, method: Callable[..., jax.Array], params: Params, *args: Any) -> jax.Array:
        frozen = params[PLAYER]
        return method(frozen["params"], frozen["mutables"], *args)

    @abc.abstractmethod
    def encode_batch(self, params: Params, batch: Batch, key_B: jax.Array) -> Batch:
        """The batch as the inner objective reads it, in latents or codes."""

    def prepare(
        self,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> Batch:
        """The batch in latents or codes, as the inner objective prepares it."""
        inner = self.encode_batch(params, batch, key_B)
        return self.objective.prepare(params, mutables, inner, key_B, step)

    def loss(
        self,
        player: str,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, Mutables]]:
        """The inner objective's loss of the prepared batch."""
        return self.objective.loss(player, params, mutables, batch, key_B, step)

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """The inner objective's metrics of the prepared batch."""
        return self.objective.evaluate(params, mutables, batch, key_B)
