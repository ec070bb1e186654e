"""Capabilities: what an objective can do beside `Objective`, each as a runtime-checkable protocol.

Evaluation, sampling, chat, bench, plan and conversion ask `isinstance(objective, SupportsX)`; they
never ask which family it is. Shapes: B batch, N samples.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from aigc_jax.core.metrics import Metrics
from aigc_jax.core.modality import Spec
from aigc_jax.core.objective import Batch, HealthCheck, Mutables, Objective, Params


@runtime_checkable
class SupportsHealthChecks(Protocol):
    """Says which metrics show that training goes wrong."""

    health_checks: tuple[HealthCheck, ...]


@runtime_checkable
class SupportsPredictions(Protocol):
    """Predicts something of each held-out example, such as its class or its codes."""

    def predict(self, params: Params, mutables: Mutables, batch: Batch) -> dict[str, jax.Array]:
        """Arrays (B, …) by name."""
        ...


@runtime_checkable
class SupportsSummary(SupportsPredictions, Protocol):
    """Has metrics of a whole data set that are no means over examples."""

    def summarize(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics from the predictions (N, …) of all examples."""
        ...


@runtime_checkable
class SupportsReconstruction(Protocol):
    """Encodes examples and decodes them again."""

    def reconstruct(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """The decoded examples, in the form of the data: uint8 for images."""
        ...


@runtime_checkable
class SupportsLikelihood(Protocol):
    """Computes exact likelihoods."""

    def exact_likelihood(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """Likelihoods as metrics, `bits_per_dim` among them."""
        ...


@runtime_checkable
class SupportsAutoguidance(Protocol):
    """Can be guided by a weaker model (Karras et al. 2024)."""

    def autoguidance(self, other: Any, params: Params) -> Any:
        """`SampleRequest.guidance_model` from another run's objective and parameters.

        Raises:
          UserError: if that objective cannot guide this one.
        """
        ...


@runtime_checkable
class SupportsInitImage(Protocol):
    """Begins samples with given images: image-to-image and inpainting."""

    init_shape: tuple[int, ...]  # of one image, as a person gives it


@runtime_checkable
class SupportsFirstStage(Protocol):
    """An autoencoder that can be the frozen first stage of another model (Rombach et al. 2022).

    Attributes:
      latent_shape: (*spatial, c) of an example's latents, or c codes at each place.
      num_codes: entries of the codebook; 0: latents are continuous.
      covered: spatial size that the latents cover, of which the example is the middle.
    """

    latent_shape: tuple[int, ...]
    num_codes: int
    covered: tuple[int, ...]

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]: ...

    def encode(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """float32 latents or int32 codes (B, *latent_shape)."""
        ...

    def decode(self, params: Params, mutables: Mutables, latent_N: jax.Array) -> jax.Array:
        """Examples in the form of the data (N, …)."""
        ...


@runtime_checkable
class UsesFirstStage(Protocol):
    """Works in the latents or codes of a frozen first stage.

    Attributes:
      objective: the inner objective, of latents or codes.
      stage: the first stage.
      latent_spec: of the data that the inner objective models.
    """

    objective: Objective
    stage: SupportsFirstStage
    latent_spec: Spec

    def init_frozen(self, params: Params, mutables: Mutables, batch: Batch) -> dict[str, Any]:
        """The parameters of the frozen player, from those of the trained autoencoder."""
        ...


@runtime_checkable
class SupportsText(Protocol):
    """Takes texts as prompts and shows samples as texts."""

    def encode_prompts(self, prompts: Sequence[str], options: Any) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for these texts: padded "tokens" (N, P) and "length" (N,)."""
        ...

    def texts(self, samples: np.ndarray, options: Any) -> list[str]:
        """Samples as texts."""
        ...


@runtime_checkable
class SupportsTextGeneration(SupportsText, Protocol):
    """Writes text token by token: chat, streaming, continuations, serving, decoding speed.

    Attributes:
      tokenizer: of its tokens.
      context: tokens that it attends to at most.
      bounded: whether prompt and new tokens together must fit into `context`.
    """

    tokenizer: Any
    context: int
    bounded: bool

    def encode_tokens(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int
    ) -> dict[str, np.ndarray]:
        """`SampleRequest.init` for prompts of tokens, cut to the end of what the context holds."""
        ...

    def engine(
        self,
        params: Params,
        slots: int,
        length: int,
        max_new_tokens: int,
        stops: Sequence[int] | None = None,
    ) -> Any:
        """The decoding engine (`inference/engine.py`) with these parameters.

        Args:
          params: `{player: parameters}`.
          slots: requests that are written at once.
          length: tokens of prompt and answer that a slot holds.
          max_new_tokens: the most that a request may ask for.
          stops: tokens that end a row; None: the tokenizer's.
        """
        ...

    def decoding_bytes(self, params: Params, batch: int, length: int) -> float:
        """The least bytes that a step of decoding reads: parameters, and the filled cache.

        Args:
          params: `{player: parameters}`.
          batch: rows that are written at once.
          length: tokens that each gets.
        """
        ...


@runtime_checkable
class SupportsRemat(Protocol):
    """A model config with a choice of rematerialisation.

    Attributes:
      remat: activations that are recomputed in the backward pass: "none", "dots" or "full".
    """

    remat: str


@runtime_checkable
class HasVocabulary(Protocol):
    """A model config with a vocabulary.

    Attributes:
      vocab_size: entries; 0: those of the data's tokenizer.
    """

    vocab_size: int


@runtime_checkable
class SupportsAttendedShare(Protocol):
    """A model config whose attention masks a part of the pairs of positions."""

    def attended_share(self, length: int) -> float:
        """Share of the pairs of positions that are not masked, for sequences of `length`."""
        ...


@runtime_checkable
class SupportsMergedAdapters(Protocol):
    """Has low-rank adapters that can be merged into the model that they adapt."""

    def merge_adapters(self, params: Params) -> Params:
        """The parameters of one player, the adapters merged; unchanged without adapters."""
        ...


@runtime_checkable
class HasSequenceLength(Protocol):
    """A model config whose network reads sequences, which the mesh axis `sequence` can shard."""

    def length_of(self, spec: Any) -> int:
        """Positions that the network reads at once, for data like `spec`."""
        ...


@runtime_checkable
class HasWrongGradients(Protocol):
    """A model config whose gradient XLA's partitioner computes wrongly on some meshes.

    Attributes:
      wrong_on: mesh axes that must not all be larger than 1.
    """

    wrong_on: tuple[str, ...]
