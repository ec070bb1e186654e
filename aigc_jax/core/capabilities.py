"""Capabilities: optional methods of an objective, each as a runtime-checkable protocol.

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
    """Declares the metrics that show that training is unhealthy."""

    health_checks: tuple[HealthCheck, ...]


@runtime_checkable
class SupportsPredictions(Protocol):
    """Makes a prediction for each held-out example, such as its class or its codes."""

    def predict(self, params: Params, mutables: Mutables, batch: Batch) -> dict[str, jax.Array]:
        """Returns arrays (B, …) by name."""
        ...


@runtime_checkable
class SupportsSummary(SupportsPredictions, Protocol):
    """Has metrics of a complete data set that are not means over examples, such as F1."""

    def summarize(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns metrics of the predictions (N, …) of all examples."""
        ...


@runtime_checkable
class SupportsReconstruction(Protocol):
    """Encodes examples and decodes them again."""

    def reconstruct(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """Returns the decoded examples in the dtype of the data: uint8 for images."""
        ...


@runtime_checkable
class SupportsLikelihood(Protocol):
    """Computes exact likelihoods."""

    def exact_likelihood(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """Returns likelihoods as metrics, including `bits_per_dim`."""
        ...


@runtime_checkable
class SupportsAutoguidance(Protocol):
    """Can be guided by a weaker model (Karras et al. 2024)."""

    def autoguidance(self, other: Objective, params: Params) -> Any:
        """Returns `SampleRequest.guidance_model` for another run's objective and parameters.

        Raises:
          UserError: if that objective cannot guide this one.
        """
        ...


@runtime_checkable
class SupportsInitImage(Protocol):
    """Begins samples with given images: image-to-image and inpainting."""

    init_shape: tuple[int, ...]  # (height, width, channels) of an image that the user passes


@runtime_checkable
class SupportsFirstStage(Protocol):
    """An autoencoder that can be the frozen first stage of another model (Rombach et al. 2022).

    Attributes:
      latent_shape: (*spatial, c) of an example's latents, or c codes at each position.
      num_codes: entries of the codebook; 0 if latents are continuous.
      covered: spatial size that the latents cover; the example is centred in it, padded.
    """

    latent_shape: tuple[int, ...]
    num_codes: int
    covered: tuple[int, ...]

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]: ...

    def encode(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """Returns float32 latents or int32 codes (B, *latent_shape)."""
        ...

    def decode(self, params: Params, mutables: Mutables, latent_N: jax.Array) -> jax.Array:
        """Returns examples (N, …) in the dtype of the data."""
        ...


@runtime_checkable
class UsesFirstStage(Protocol):
    """Works in the latents or codes of a frozen first stage.

    Attributes:
      objective: the inner objective, which models latents or codes.
      stage: the first stage.
      latent_spec: spec of the latents or codes.
    """

    objective: Objective
    stage: SupportsFirstStage
    latent_spec: Spec

    def init_frozen(self, params: Params, mutables: Mutables, batch: Batch) -> dict[str, Any]:
        """Returns the frozen player's parameters, made from those of the trained autoencoder."""
        ...


@runtime_checkable
class HasPrompts(Protocol):
    """Sampling options with texts to continue."""

    prompts: Sequence[str]


@runtime_checkable
class SupportsText(Protocol):
    """Takes texts as prompts and decodes samples to texts."""

    def encode_prompts(self, prompts: Sequence[str], options: Any) -> dict[str, np.ndarray]:
        """Returns `SampleRequest.init` for texts: padded "tokens" (N, P) and "length" (N,)."""
        ...

    def texts(self, samples: np.ndarray, options: Any) -> list[str]:
        """Decodes samples to texts."""
        ...


@runtime_checkable
class SupportsTextGeneration(SupportsText, Protocol):
    """Generates text token by token: chat, streaming, continuations, serving, decoding speed.

    Attributes:
      tokenizer: tokenizer of prompts and samples.
      context: maximum number of tokens that it attends to.
      bounded: whether prompt and new tokens together must fit into `context`.
    """

    tokenizer: Any
    context: int
    bounded: bool

    def encode_tokens(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int
    ) -> dict[str, np.ndarray]:
        """Returns `SampleRequest.init` for token prompts, keeping the last that fit the context."""
        ...

    def engine(
        self,
        params: Params,
        slots: int,
        length: int,
        max_new_tokens: int,
        stops: Sequence[int] | None = None,
    ) -> Any:
        """Returns a decoding engine (`inference/engine.py`) with these parameters.

        Args:
          params: `{player: parameters}`.
          slots: requests decoded at once.
          length: capacity of a slot: tokens of prompt and answer.
          max_new_tokens: maximum number of new tokens of a request.
          stops: tokens that end a row; defaults to the tokenizer's.
        """
        ...

    def decoding_bytes(self, params: Params, batch: int, length: int) -> float:
        """Returns the least bytes that a decoding step reads: parameters and the filled cache.

        Args:
          params: `{player: parameters}`.
          batch: rows decoded at once.
          length: tokens in the cache of each row.
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
    """Has low-rank adapters that can be merged into the base model."""

    def merge_adapters(self, params: Params) -> Params:
        """Returns one player's parameters with the adapters merged; unchanged without adapters."""
        ...


@runtime_checkable
class HasSequenceLength(Protocol):
    """A model config whose network reads sequences, which the mesh axis `sequence` can shard."""

    def length_of(self, spec: Spec) -> int:
        """Returns the sequence length of the network for data like `spec`."""
        ...


@runtime_checkable
class HasWrongGradients(Protocol):
    """A model config whose gradient XLA's partitioner computes wrongly on some meshes.

    Attributes:
      wrong_on: mesh axes; gradients are wrong if all of them are larger than 1.
    """

    wrong_on: tuple[str, ...]
