"""Registries: names in a config → objects, also from packages outside the library.

A name is looked up in this order: what has been registered, an import path `package.module:NAME`,
and the entry points of the group `aigc_jax.<kind>` of installed packages.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from aigc_jax.core.errors import UserError, did_you_mean, one_line, shorten

T = TypeVar("T")
OWN_PACKAGE = "aigc_jax"


class Registry(Mapping[str, T], Generic[T]):
    """Named objects of one kind.

    Args:
      kind: what they are, in the singular: "sampler". Entry points of the group `aigc_jax.sampler`
        belong to it.
      field: the config field that holds such a name, for messages.
      items: the library's own.
    """

    def __init__(self, kind: str, field: str, items: Mapping[str, T] | None = None):
        self.kind, self.field = kind, field
        self._items: dict[str, T] = dict(items or {})

    def register(self, name: str, item: T) -> T:
        """Makes `name` mean `item`; the last registration of a name counts."""
        self._items[name] = item
        return item

    def decorator(self, name: str) -> Callable[[T], T]:
        """`@REGISTRY.decorator("name")` registers a class or function."""
        return lambda item: self.register(name, item)

    def __getitem__(self, name: str) -> T:
        """The object of a name.

        Raises:
          UserError: if there is none, or its module cannot be imported.
        """
        if name in self._items:
            return self._items[name]
        if is_import_path(name):
            return self.register(name, import_path(name, self.field))
        for point in importlib.metadata.entry_points(group=f"{OWN_PACKAGE}.{self.kind}"):
            if point.name == name:
                return self.register(name, point.load())
        raise UserError(
            f"{self.field} is '{shorten(name, 80)}': {did_you_mean(str(name), self.names())},"
            " or give the"
            " import path of your own as package.module:NAME"
        )

    def __contains__(self, name: object) -> bool:
        try:
            self[str(name)]
        except UserError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def names(self) -> tuple[str, ...]:
        """Registered names and those of entry points."""
        points = importlib.metadata.entry_points(group=f"{OWN_PACKAGE}.{self.kind}")
        return tuple(dict.fromkeys((*self._items, *(point.name for point in points))))


def is_import_path(name: str) -> bool:
    """Whether `name` is of the form `package.module:NAME`."""
    module, colon, attribute = name.partition(":")
    return (
        bool(colon)
        and attribute.isidentifier()
        and all(part.isidentifier() for part in module.split("."))
    )


def import_path(path: str, field: str) -> object:
    """The object at `package.module:NAME`.

    Args:
      path: where it is.
      field: the config field that names it, for messages.

    Raises:
      UserError: if the module cannot be imported or has no such name.
    """
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as e:  # whatever the module raises when it is imported
        raise UserError(
            f"{field}={shorten(path)} cannot be imported ({type(e).__name__}: {one_line(e)}):"
            " install"
            f" the package, or put its folder on PYTHONPATH"
        ) from e


def import_plugins(modules: Iterable[str]) -> None:
    """Imports the modules of the config field `plugins`, whose import registers things.

    Raises:
      UserError: if one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as e:  # whatever the module raises when it is imported
            raise UserError(
                f"plugins names {shorten(module)}, which cannot be imported ({type(e).__name__}:"
                f" {one_line(e)}): install the package, or put its folder on PYTHONPATH"
            ) from e
