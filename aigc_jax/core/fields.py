"""Config fields: defaults, types, ranges, and validation."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from aigc_jax.core.errors import UserError, did_you_mean


class Dataclass(Protocol):
    """A dataclass instance."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T", bound=Dataclass)


class Choices(Protocol):
    """The values that a field may have: a tuple, or a `Registry` of names."""

    def __contains__(self, value: object, /) -> bool: ...

    def __iter__(self) -> Iterator[Any]: ...


def option(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Choices = (),
    nonempty: bool = False,
    resumable: bool = False,
    init_compatible: bool = False,
    flag: str = "",
) -> Any:
    """Declares a dataclass field with a default, its range, and metadata.

    Args:
      default: value if a config omits the field.
      low: minimum.
      high: maximum.
      choices: valid values; a `Registry` also accepts import paths.
      nonempty: rejects an empty string or tuple.
      resumable: the field may change when a run is resumed, because it affects monitoring,
        placement or the length of the run, but not its numbers.
      init_compatible: parameters mean the same for every value of the field, so that a warm start
        does not report a difference.
      flag: help text of the command-line flag, for fields of sampling and evaluation options;
        range and choices are appended to it. If empty, the help only names the field.
    """
    metadata = dict(
        low=low,
        high=high,
        choices=choices,
        nonempty=nonempty,
        resumable=resumable,
        init_compatible=init_compatible,
        flag=flag,
    )
    return dataclasses.field(default=default, metadata=metadata)


def marked(section: type, mark: str, where: str) -> list[str]:
    """Returns dotted names of a section's fields that have been marked by `option`.

    Args:
      section: a dataclass. The class attribute `RESUMABLE = True` marks all of its fields.
      mark: "resumable" or "init_compatible".
      where: the name of the section.
    """
    everything = mark == "resumable" and any(c.__dict__.get("RESUMABLE") for c in section.__mro__)
    found = []
    for field in dataclasses.fields(section):
        inner = field.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found += marked(inner, mark, f"{where}.{field.name}")
        elif everything or field.metadata.get(mark):
            found.append(f"{where}.{field.name}")
    return found


def parse_section(cls: type[T], values: Mapping[str, Any], where: str, *, named: bool = False) -> T:
    """Builds the dataclass `cls` from `values`; if `named`, the key `name` is skipped.

    Raises:
      UserError: for an unknown key, a wrong type, or a value outside its range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a section of keys, but it is {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    parsed = {}
    for key, value in values.items():
        if key not in fields:
            if named and key == "name":
                continue
            raise UserError(f"the config has no key '{where}.{key}': {did_you_mean(key, fields)}")
        parsed[key] = check_value(hints[key], value, f"{where}.{key}")
        check_range(fields[key], parsed[key], f"{where}.{key}")
    return cls(**parsed)


def check_value(hint: Any, value: Any, where: str) -> Any:
    """Returns `value` converted to the type `hint`: a plain type, or a tuple of one."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return parse_section(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a tuple such as (1, 2), but it is {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(check_value(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(
            f"{where} must be of type {hint.__name__}, but it is {value!r} ({type(value).__name__})"
        )
    if hint is int and not isinstance(value, bool) and not -(2**31) <= value < 2**31:
        raise UserError(f"{where} must fit into 32 bits, but it is {value}")
    return value


def check_range(field: dataclasses.Field, value: Any, where: str) -> None:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    choices = field.metadata.get("choices", ())
    items = value if isinstance(value, tuple) else (value,)
    if choices != () and not all(item in choices for item in items):
        raise UserError(
            f"{where} must be one of {', '.join(map(str, choices))}, but it is {value!r}"
        )
    if field.metadata.get("nonempty") and not value:
        raise UserError(f"{where} must have at least one entry")
    for item in items:
        if low is not None and not item >= low:
            raise UserError(f"{where} must be at least {low}, but it is {item!r}")
        if high is not None and not item <= high:
            raise UserError(f"{where} must be at most {high}, but it is {item!r}")
