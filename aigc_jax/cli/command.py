"""A command of `aigc`: its flags and what it runs."""

import dataclasses
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from absl import flags

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `aigc`.

    Attributes:
      help: one line about it.
      run: runs it with the parsed `FLAGS`; returns an exit code or None.
      required: names of the flags that it needs.
      optional: names of the flags that it accepts.
      instead: for a required flag, those that can replace it.
      options: returns the dataclasses, by title, whose fields are also flags; called for this
        command only, since it may import JAX.
      hidden_options: fields of these dataclasses that are not flags.
    """

    help: str
    run: Callable[[], int | None]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    instead: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    options: Callable[[], Mapping[str, type]] = dict
    hidden_options: Collection[str] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the flags that are defined before the command is known."""
        others = (name for names in self.instead.values() for name in names)
        return tuple(dict.fromkeys((*self.required, *self.optional, *others)))

    def option_names(self) -> tuple[str, ...]:
        """Defines the flags of `options`; returns their names."""
        names: dict[str, None] = {}
        for section in self.options().values():
            hints = typing.get_type_hints(section)
            for field in self._fields(section):
                _define_flag(field, hints[field.name])
                names[field.name] = None
        return tuple(names)

    def option_groups(self) -> dict[tuple[str, ...], dict[str, str]]:
        """Titles of the dataclasses that share options → help texts of these, by name."""
        titles: dict[tuple[str, str], tuple[str, ...]] = {}
        for title, section in self.options().items():
            for field in self._fields(section):
                key = field.name, option_help(field)
                titles[key] = (*titles.get(key, ()), title)
        groups: dict[tuple[str, ...], dict[str, str]] = {}
        for (name, text), group in titles.items():
            groups.setdefault(group, {})[name] = text
        return groups

    def _fields(self, section: type) -> list[dataclasses.Field]:
        fields = dataclasses.fields(section)
        return [field for field in fields if field.name not in self.hidden_options]

    def given_options(self) -> dict[str, Any]:
        """The values of those flags of `options` that were given."""
        return given(self.option_names())


def _define_flag(field: dataclasses.Field, kind: Any) -> None:
    """Defines the flag of a dataclass field, unless a flag of that name is defined."""
    if field.name in FLAGS:
        return
    text = option_help(field)
    if typing.get_origin(kind) is tuple:
        flags.DEFINE_multi_string(field.name, None, text)
    elif kind is bool:
        flags.DEFINE_bool(field.name, None, text)
    elif kind is int:
        flags.DEFINE_integer(field.name, None, text)
    elif kind is float:
        flags.DEFINE_float(field.name, None, text)
    else:
        flags.DEFINE_string(field.name, None, text)


def option_help(field: dataclasses.Field) -> str:
    """Help text of a field of `core.fields.option`: its own text, and the values it may have."""
    text = field.metadata.get("flag") or f"The field {field.name} of this section."
    low, high = field.metadata.get("low"), field.metadata.get("high")
    values = ", ".join(map(str, field.metadata.get("choices", ())))
    if low is not None and high is not None:
        values = f"{low:g} to {high:g}"
    elif low is not None or high is not None:
        values = f"≥{low:g}" if low is not None else f"≤{high:g}"
    return f"{text.removesuffix('.')} ({values})." if values else text


def given(names: Iterable[str]) -> dict[str, Any]:
    """The values of those flags of these names that were given."""
    values = {name: FLAGS[name].value for name in names}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}


def sampling_options() -> dict[str, type]:
    """The sampling options of all families, including those of installed packages."""
    from aigc_jax.families.registry import FAMILIES

    return {name: FAMILIES[name].sample for name in FAMILIES.names()}
