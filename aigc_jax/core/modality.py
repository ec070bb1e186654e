"""What a kind of data is to the rest of the library: its spec, and its modality.

Nothing outside `modalities/` asks which modality a spec has; it asks the modality to do something.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from aigc_jax.core.registry import Registry


class Spec(Protocol):
    """What a model must know of its data; small, and kept in every checkpoint.

    Attributes:
      modality: the name of its modality in `MODALITIES`.
      task: what one example is, which a family says that it models: "image", "text", "labelled
        text", "tagged text".
      class_names: one per label; empty for data without labels.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def modality(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """A batch with the right shapes and nothing in it."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with the key "modality"; the inverse of `Modality.spec_from_json`."""
        ...


class Modality(Protocol):
    """Everything about a kind of data that training, evaluation and reports need.

    Attributes:
      name: its key in `MODALITIES`.
      suffix: of a file of samples, such as ".png".
    """

    name: str
    suffix: str

    def spec_from_json(self, value: Mapping[str, Any]) -> Spec:
        """The spec; ValueError, KeyError or TypeError for a value that describes none."""
        ...

    def throughput(self, spec: Spec) -> tuple[str, int]:
        """The unit of throughput and how many of it one example has: ("tokens", 128)."""
        ...

    def save(self, samples: Any, path: str) -> str:
        """Writes samples for people; returns the path."""
        ...


MODALITIES: Registry[Modality] = Registry("modality", "modality")
