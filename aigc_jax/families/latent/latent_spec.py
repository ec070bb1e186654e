"""The spec of what a model in a latent space is given: arrays of a first stage's latents."""

import dataclasses
from typing import Any

import numpy as np

from aigc_jax.core.modality import CONTINUOUS, GIVEN, LABEL, MODELLED, Field


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """Continuous latents of examples of any modality.

    Attributes:
      shape: (*spatial, c) of an example's latents.
      field: the field of a batch that holds them: that of the examples which are encoded.
      modality: of these examples.
      class_names: one per label; empty without labels.
    """

    shape: tuple[int, ...]
    field: str
    modality: str
    class_names: tuple[str, ...] = ()
    levels = 0

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.class_names)

    @property
    def fields(self) -> dict[str, Field]:
        """The latents, which are modelled, and the label, if there are classes."""
        label = {"label": Field(LABEL, GIVEN)} if self.num_classes else {}
        return {self.field: Field(CONTINUOUS, MODELLED), **label}

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """Zeros: float32 latents (size, *shape); "label", "weight"."""
        batch: dict[str, np.ndarray] = {self.field: np.zeros((size, *self.shape), np.float32)}
        if self.num_classes:
            batch["label"] = np.zeros(size, np.int32)
        return batch | {"weight": np.ones(size, np.float32)}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for comparisons; the run's own spec is that of the examples."""
        return {"modality": self.modality, "shape": list(self.shape), "field": self.field}
