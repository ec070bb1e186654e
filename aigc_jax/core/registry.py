"""Registries: map names in a config to objects, also from packages outside the library.

A name is looked up in this order: registered names, an import path `package.module:NAME`,
the folders of the registry's package, and the entry points of the group `aigc_jax.<kind>` of
installed packages.
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar, cast

from aigc_jax.core.errors import UserError, did_you_mean, one_line, shorten

T = TypeVar("T")
OWN_PACKAGE = "aigc_jax"


class Registry(Mapping[str, T], Generic[T]):
    """Named objects of one kind.

    Args:
      kind: kind of object, in the singular: "sampler". Entry points of the group
        `aigc_jax.sampler` are looked up too.
      field: the config field that holds such a name, for messages.
      items: initial objects by name.
      package: a package whose modules NAME.KIND register NAME when they are imported:
        `aigc_jax.modalities` with `aigc_jax/modalities/image/modality.py`.
    """

    def __init__(
        self, kind: str, field: str, items: Mapping[str, T] | None = None, package: str = ""
    ):
        self.kind, self.field, self._package = kind, field, package
        self._items: dict[str, T] = dict(items or {})

    def folders(self) -> tuple[str, ...]:
        """Returns names of the package's folders that have a module of this kind."""
        if not self._package:
            return ()
        paths = importlib.import_module(self._package).__path__
        return tuple(
            folder.name
            for folder in pkgutil.iter_modules(paths)
            if folder.ispkg
            and importlib.util.find_spec(f"{self._package}.{folder.name}.{self.kind}")
        )

    def register(self, name: str, item: T) -> T:
        """Registers `item` as `name`, replacing an earlier registration; returns `item`."""
        self._items[name] = item
        return item

    def decorator(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers a class or function as `name`."""
        return lambda item: self.register(name, item)

    def __getitem__(self, name: str) -> T:
        """Returns the object registered as `name`.

        Raises:
          UserError: if the name is unknown, or its module cannot be imported.
        """
        if name in self._items:
            return self._items[name]
        if is_import_path(name):
            return self.register(name, cast(T, import_path(name, self.field)))
        if name in self.folders():
            importlib.import_module(f"{self._package}.{name}.{self.kind}")
            return self._items[name]
        for point in importlib.metadata.entry_points(group=f"{OWN_PACKAGE}.{self.kind}"):
            if point.name == name:
                return self.register(name, point.load())
        raise UserError(
            f"{self.field} is '{shorten(name, 80)}': {did_you_mean(str(name), self.names())}"
            " (for your own, give its import path as package.module:NAME)"
        )

    def __contains__(self, name: object) -> bool:
        try:
            self[str(name)]
        except UserError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.folders(), *self._items)))

    def __len__(self) -> int:
        return len(tuple(iter(self)))

    def names(self) -> tuple[str, ...]:
        """Returns registered names, folders of the package and names of entry points."""
        points = importlib.metadata.entry_points(group=f"{OWN_PACKAGE}.{self.kind}")
        return tuple(dict.fromkeys((*self, *(point.name for point in points))))


def is_import_path(name: str) -> bool:
    """Returns whether `name` has the form `package.module:NAME`."""
    module, colon, attribute = name.partition(":")
    return (
        bool(colon)
        and attribute.isidentifier()
        and all(part.isidentifier() for part in module.split("."))
    )


def import_path(path: str, field: str) -> object:
    """Imports the object at `package.module:NAME`.

    Args:
      path: the import path.
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
    """Imports the modules of the config field `plugins`, which register objects when imported.

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
