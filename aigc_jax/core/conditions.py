"""Conditions: what a sample is given, as one pytree.

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
    """One thing that is given, for each of B examples.

    Attributes:
      value: (B, …), whatever its embedder reads: class indices, a vector, tokens.
      present_B: bool; False takes the null embedding instead (classifier-free guidance).
    """

    value: jax.Array
    present_B: jax.Array

    @classmethod
    def of(cls, value: jax.Array) -> "Condition":
        """A condition that every example has."""
        value = jnp.asarray(value)
        return cls(value, jnp.ones(value.shape[0], bool))


Conditions = dict[str, Condition]  # by name; a model's `Conditioner` embeds those that it knows


def conditions_of(batch: Mapping[str, jax.Array], names: Mapping[str, object]) -> Conditions:
    """The conditions of a batch: its fields of these names."""
    return {name: Condition.of(batch[name]) for name in names if name in batch}


def drop(conditions: Conditions, dropped_B: jax.Array) -> Conditions:
    """The conditions, absent where `dropped_B` is True."""
    return {
        name: condition.replace(present_B=condition.present_B & ~dropped_B)
        for name, condition in conditions.items()
    }


def null(conditions: Conditions) -> Conditions:
    """The same conditions, all absent: the unconditional model."""
    return {
        name: condition.replace(present_B=jnp.zeros_like(condition.present_B))
        for name, condition in conditions.items()
    }


def with_null(conditions: Conditions) -> Conditions:
    """Conditions of 2B examples: those given, then all of them absent (guidance in one call)."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conditions, null(conditions))


def any_present(conditions: Conditions, size: int) -> jax.Array:
    """Whether each of `size` examples has a condition, bool (B,)."""
    present_B = jnp.zeros(size, bool)
    for condition in conditions.values():
        present_B |= condition.present_B
    return present_B


@runtime_checkable
class ConditionSpec(Protocol):
    """What an objective says of a condition that a sampling request may hold."""

    def values(self, option: int | str | None, num: int) -> np.ndarray:
        """The condition of each of `num` samples.

        Args:
          option: what a person asked for, or None.
          num: how many samples.

        Raises:
          UserError: if there is no such thing.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ClassLabel:
    """A class index as a condition.

    Attributes:
      num_classes: K.
      names: of the classes, if they have any.
    """

    num_classes: int
    names: tuple[str, ...] = ()

    def values(self, option: int | str | None, num: int) -> np.ndarray:
        """int32 (num,): the class asked for, or all classes in turn (None or −1)."""
        label = -1 if option is None else option
        if isinstance(label, str):
            if label not in self.names:
                raise UserError(
                    f"this model has no class '{label}': it has {', '.join(self.names)}"
                )
            label = self.names.index(label)
        if label >= self.num_classes:
            raise UserError(
                f"this model cannot draw class {label}: its classes are 0 to {self.num_classes - 1}"
            )
        return (
            np.full(num, label, np.int32)
            if label >= 0
            else np.arange(num, dtype=np.int32) % self.num_classes
        )


def label_of(conditions: Conditions) -> jax.Array | None:
    """The class of each example (B,), if it is given."""
    return conditions[LABEL].value if LABEL in conditions else None


def class_conditions(num_classes: int) -> dict[str, ConditionSpec]:
    """The conditions of a class-conditional model; none for 0 classes."""
    return {LABEL: ClassLabel(num_classes)} if num_classes else {}
