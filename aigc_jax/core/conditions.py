"""Conditions of a sample (class label, text, …) as one pytree.

Shapes: B examples.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.errors import UserError

LABEL = "label"


@flax.struct.dataclass
class Condition:
    """The values of one condition for B examples.

    Attributes:
      value: (B, …), input of the condition's embedder: class indices, a vector, tokens.
      present_B: bool; False takes the null embedding instead (classifier-free guidance).
    """

    value: jax.Array
    present_B: jax.Array

    @classmethod
    def of(cls, value: jax.Array | np.ndarray) -> "Condition":
        """Returns a condition that is present in every example."""
        return cls(jnp.asarray(value), jnp.ones(len(value), bool))


Conditions = dict[str, Condition]  # by name; a model's `Conditioner` embeds those that it knows


def conditions_of(batch: Mapping[str, jax.Array], names: Mapping[str, object]) -> Conditions:
    """Returns the conditions of a batch: its fields of these names."""
    return {name: Condition.of(batch[name]) for name in names if name in batch}


def drop(conditions: Conditions, dropped_B: jax.Array) -> Conditions:
    """Returns the conditions, absent where `dropped_B` is True."""
    return {
        name: Condition(condition.value, condition.present_B & ~dropped_B)
        for name, condition in conditions.items()
    }


def null(conditions: Conditions) -> Conditions:
    """Returns the same conditions, all absent: input of the unconditional model."""
    return {
        name: Condition(condition.value, jnp.zeros_like(condition.present_B))
        for name, condition in conditions.items()
    }


def with_null(conditions: Conditions) -> Conditions:
    """Returns conditions of 2B examples: present, then absent (guidance in one call)."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conditions, null(conditions))


def any_present(conditions: Conditions, size: int) -> jax.Array:
    """Returns bool (B,), True for examples with at least one condition; B is `size`."""
    present_B = jnp.zeros(size, bool)
    for condition in conditions.values():
        present_B |= condition.present_B
    return present_B


@runtime_checkable
class ConditionSpec(Protocol):
    """Checks and expands a condition that is passed as a sampling option."""

    def values(self, option: int | str | None, num: int) -> np.ndarray:
        """Returns the condition's value for each of `num` samples.

        Args:
          option: the sampling option, or None if it is not set.
          num: number of samples.

        Raises:
          UserError: if the option has no such value.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ClassLabel:
    """A class index as a condition.

    Attributes:
      num_classes: K.
      names: class names, if there are any.
    """

    num_classes: int
    names: tuple[str, ...] = ()

    def values(self, option: int | str | None, num: int) -> np.ndarray:
        """Returns int32 (num,): the class asked for, or all classes in turn (None or −1)."""
        label = -1 if option is None else option
        if isinstance(label, str):
            if label not in self.names:
                raise UserError(
                    f"this model has no class '{label}': choose one of {', '.join(self.names)}"
                )
            label = self.names.index(label)
        if label >= self.num_classes:
            raise UserError(
                f"this model has no class {label}: choose one from 0 to {self.num_classes - 1}"
            )
        return (
            np.full(num, label, np.int32)
            if label >= 0
            else np.arange(num, dtype=np.int32) % self.num_classes
        )


def label_of(conditions: Conditions) -> jax.Array | None:
    """Returns the class of each example (B,); None if there is no such condition."""
    return conditions[LABEL].value if LABEL in conditions else None


def class_conditions(num_classes: int) -> dict[str, ConditionSpec]:
    """Returns the conditions of a class-conditional model; {} for 0 classes."""
    return {LABEL: ClassLabel(num_classes)} if num_classes else {}
