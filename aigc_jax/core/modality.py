"""Modalities: the interface of a kind of data (text, images, …) to the rest of the library.

A modality is one folder of `modalities/` or one class of another package. Code outside it never
branches on a spec's modality; it calls `MODALITIES[spec.modality]`.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.registry import Registry

# Kinds of fields. A family declares which of them it models.
LEVELS = "arrays of levels"  # (…, channels) uint8; the spec is an `ArraySpec`
CONTINUOUS = "continuous arrays"  # (…, channels) float32; the spec is an `ArraySpec`
TOKENS = "tokens"  # (T,) entries of a vocabulary
LABEL = "labels"  # a class
TAGS = "tags"  # (T,) a class per token

MODELLED, GIVEN = "modelled", "given"  # roles of fields


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of an example.

    Attributes:
      kind: one of the constants above, or a kind that only families of another package model.
      role: `MODELLED` for the field that a model generates or predicts; `GIVEN` for a condition.
    """

    kind: str
    role: str


class Spec(Protocol):
    """Properties of a data set that its model depends on; small, and saved in every checkpoint.

    Attributes:
      class_names: names of the classes; empty for data without labels.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def modality(self) -> str:
        """The name of its modality in `MODALITIES`."""
        ...

    @property
    def num_classes(self) -> int: ...

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of an example by name, without "weight"; exactly one is modelled."""
        ...

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """Returns a batch of zeros with the data's fields, shapes and dtypes, and weights of 1."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values with the key "modality"; the inverse of `spec_from_json`."""
        ...


class ArraySpec(Spec, Protocol):
    """A spec whose modelled field is an array of any rank.

    Attributes:
      shape: of one example: (T, C), (H, W, C), (T, H, W, C).
      levels: number of values of an element, spread over 0…255; 0 if continuous.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def levels(self) -> int: ...


class Examples(Protocol):
    """Random access to examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]: ...


class Modality(abc.ABC):
    """A kind of data: the methods that training, evaluation, reports and tools call.

    Attributes:
      name: its key in `MODALITIES`, and `Spec.modality` of its data.
      suffix: suffix of a file of samples, such as ".png".
      unit: unit of throughput, in the plural: "images".
      metrics: names in `METRICS`, or import paths, of the metrics that evaluation computes.
      eval_options: dataclass of the config section `eval.NAME`, the options of these metrics; None
        if they have no options.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    unit: ClassVar[str] = "examples"
    metrics: ClassVar[tuple[str, ...]] = ()
    eval_options: ClassVar[type | None] = None

    @abc.abstractmethod
    def spec_from_json(self, value: Mapping[str, Any]) -> Spec:
        """Builds a spec from the output of `Spec.to_json`, which is not trusted.

        Raises:
          KeyError, TypeError, ValueError: if the value describes no data of this modality.
        """

    @abc.abstractmethod
    def save(self, samples: Any, path: str) -> str:
        """Writes samples to a file that people can view or play; returns its path.

        Args:
          samples: what an objective's `sample` returned, or texts.
          path: of the file, with its suffix.

        Raises:
          OSError: if it cannot be written.
        """

    @abc.abstractmethod
    def is_samples(self, samples: Any) -> bool:
        """Returns whether a value has the type and shape of samples of this modality."""

    def units_per_example(self, spec: Spec) -> int:
        """Returns the number of `unit`s in one example: 1 image, T tokens."""
        del spec
        return 1

    def describe(self, spec: Spec) -> dict[str, Any]:
        """Returns the sizes of an example as plain values, for reports."""
        del spec
        return {}

    def synthetic_spec(self, shape: str, config: Config) -> Spec | None:
        """Returns the spec of random data; None if `shape` is not one of this modality.

        Args:
          shape: value of `--synthetic`; if empty, the shape that the config implies, if it does.
          config: of the run.

        Raises:
          UserError: if the shape is of this modality but does not suit the config.
        """
        del shape, config
        return None

    def synthetic_data(
        self, spec: Spec, config: Config, rng: np.random.Generator
    ) -> tuple[Spec, Examples]:
        """Returns random examples, read by the same source class as real ones, and their spec.

        Raises:
          UserError: if there are no random data of this kind.
        """
        raise UserError(f"--synthetic: the modality '{self.name}' cannot generate random examples")

    def resolve(self, config: Config) -> Config:
        """Returns the config with sizes that depend on the data filled in, without reading data.

        Raises:
          UserError: if only the data determine them.
        """
        return config


MODALITIES: Registry[Modality] = Registry("modality", "modality", package="aigc_jax.modalities")


def modelled_field(spec: Spec) -> str:
    """Returns the name of the field that a model of such data generates or predicts."""
    return next(name for name, field in spec.fields.items() if field.role == MODELLED)


def task_of(spec: Spec) -> str:
    """Returns the kind of the modelled field, such as `TOKENS`."""
    return spec.fields[modelled_field(spec)].kind


def spec_from_json(value: Any) -> Spec:
    """Builds a spec from the output of `Spec.to_json`.

    Args:
      value: parsed JSON from an untrusted source.

    Raises:
      UserError: if it is not the description of a spec, or its sizes are absurd.
    """
    try:
        name = value["modality"]
        # Registered names only: an import path in a checkpoint could import any module.
        if name not in MODALITIES.names():
            raise ValueError(f"the modality is {shorten(name, 40)}")
        return MODALITIES[name].spec_from_json(value)
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(
            f"the checkpoint's description of its data is damaged ({one_line(e)}): use another"
            " checkpoint"
        ) from e


def check_spec(workdir: str, old: Mapping[str, Any], new: Spec, source: str) -> None:
    """Raises UserError if the spec of the data differs from that of a trained workdir.

    Args:
      workdir: the run's folder.
      old: `Spec.to_json` of the data that it was trained on.
      new: spec of the present data.
      source: `data.source` of the present data, for the message.
    """
    if old != new.to_json():
        raise UserError(
            f"data.source='{source}' is not what {workdir} was trained on: its shapes, classes"
            " or vocabulary have changed"
        )


def class_names_from_json(value: Any) -> tuple[str, ...]:
    """Returns class names from a checkpoint; ValueError unless they are distinct valid strings."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("the class names are not strings")
    "".join(value).encode("utf-8")  # raises ValueError for half a surrogate pair
    if len(set(value)) < len(value):
        raise ValueError("two classes have the same name")
    return tuple(value)
