"""A command of `aigc`: its flags and what it runs."""

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import flags

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      help: one line: what it does.
      run: runs it with the parsed `FLAGS`; returns an exit code or None.
      required: flags that it needs.
      optional: flags that it may have.
      instead: flags that may be given in the place of a required one.
      options: returns dataclasses whose fields are flags too; called only for this command, since
        it may import JAX.
      hidden_options: fields of these dataclasses that are no flags.
    """

    help: str
    run: Callable[[], int | None]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    instead: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    options: Callable[[], Sequence[type]] = tuple
    hidden_options: Collection[str] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that are defined before the command is known."""
        others = (name for names in self.instead.values() for name in names)
        return tuple(dict.fromkeys((*self.required, *self.optional, *others)))

    def option_names(self) -> tuple[str, ...]:
        """Defines the flags of `options`; returns their names."""
        names: dict[str, None] = {}
        for section in self.options():
            hints = typing.get_type_hints(section)
            for field in dataclasses.fields(section):
                if field.name not in self.hidden_options:
                    _define(field, hints[field.name])
                    names[field.name] = None
        return tuple(names)

    def given_options(self) -> dict[str, Any]:
        """The values of those flags of `options` that were given."""
        return given(self.option_names())


def _define(field: dataclasses.Field, kind: Any) -> None:
    """Defines the flag of a dataclass field, unless a flag of that name is defined."""
    if field.name in FLAGS:
        return
    text = field.metadata.get("flag") or f"{kind.__name__}; the config's is used if left out."
    if typing.get_origin(kind) is tuple:
        text = field.metadata.get("flag") or "May be given several times."
        flags.DEFINE_multi_string(field.name, None, text)
    elif kind is bool:
        flags.DEFINE_bool(field.name, None, text)
    elif kind is int:
        flags.DEFINE_integer(field.name, None, text)
    elif kind is float:
        flags.DEFINE_float(field.name, None, text)
    else:
        flags.DEFINE_string(field.name, None, text)


def given(names: Collection[str]) -> dict[str, Any]:
    """The flags of these names that were given."""
    values = {name: FLAGS[name].value for name in names}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}


def sampling_options() -> list[type]:
    """The sampling options of all families, those of installed packages included."""
    from aigc_jax.families.registry import FAMILIES

    return [FAMILIES[name].sample for name in FAMILIES.names()]
