"""A family as a config names it: an objective with its models and sampling options."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from aigc_jax.core.modality import Spec
from aigc_jax.core.objective import Objective
from aigc_jax.core.registry import Registry


@dataclasses.dataclass(frozen=True)
class Model:
    """A network that a config names as `model.name`.

    Attributes:
      config: dataclass of the section `model`.
      network: builds the network, or its parts, from that dataclass; the families that take the
        model say with which arguments.
    """

    config: type
    network: Any = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """What an objective is made of.

    Attributes:
      objective: the typed section `objective`.
      model: the typed section `model`.
      network: `Model.network` of `model.name`.
      spec: what the data look like.
      dtype: of the computation.
    """

    objective: Any
    model: Any
    network: Any
    spec: Any
    dtype: jnp.dtype


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family is put together.

    Attributes:
      objective: dataclass of the config section `objective`.
      sample: dataclass of the section `sample`.
      models: by `model.name`; a plain dataclass stands for a model without a network.
      make: makes the objective of its parts.
      tasks: the kinds of field that it models, as in `core.modality`: `(LEVELS, CONTINUOUS)`.
    """

    objective: type
    sample: type
    models: Mapping[str, Any]
    make: Callable[[Parts], Objective]
    tasks: tuple[str, ...]

    def model(self, name: str) -> Model:
        """The model of a name, an import path included.

        Raises:
          UserError: if there is none.
        """
        models = self.models
        if not isinstance(models, Registry):
            models = Registry("model", "model.name", models)
        found = models[name]
        return found if isinstance(found, Model) else Model(found)


def num_classes_of(model: Any, spec: Spec) -> int:
    """The classes that a model with the field `conditional` is told; 0: none."""
    return spec.num_classes if model.conditional else 0
