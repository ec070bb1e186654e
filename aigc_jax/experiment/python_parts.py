"""Networks and optimizers given from Python instead of a config, and their records in a workdir.

A network is recorded by its import path and its fields, so that a new process builds the same one.
Like the modules that the config field `plugins` names, that of a network is imported: evaluate only
workdirs whose packages you trust.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import numpy as np
import optax

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.registry import import_path

# Several networks are a tuple: of a GAN, (generator, critic).
Network: TypeAlias = nn.Module | tuple[nn.Module, ...]
Optimizer: TypeAlias = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]
Record = dict[str, Any]
OF_FLAX = ("parent", "name")  # fields of every Flax module that are not its constructor's


@dataclasses.dataclass(frozen=True)
class PythonParts:
    """What is given from Python instead of being built from the config.

    Attributes:
      network: a Flax module in place of that of `model.name`, called in the same way; a family with
        several networks takes them as a tuple.
      optimizer: an Optax transformation in place of that of `optim`; one per player or one for all.
    """

    network: Network | None = None
    optimizer: Optimizer | None = None

    def record(self) -> Record:
        """Plain JSON values by which a workdir remembers them."""
        network = None if self.network is None else _record_network(self.network)
        return {"network": network, "optimizer": self.optimizer is not None}

    def optimizer_of(self, player: str) -> optax.GradientTransformation | None:
        """The transformation given for a player; None if none was given at all.

        Raises:
          UserError: if there are some, but not for this player.
        """
        if isinstance(self.optimizer, Mapping):
            if player not in self.optimizer:
                raise UserError(
                    f"optimizer= has no transformation for the player '{player}': it has"
                    f" {', '.join(map(str, self.optimizer))}"
                )
            return self.optimizer[player]
        return self.optimizer


def check_same_parts(workdir: str, saved: Record, now: Record) -> None:
    """Raises UserError if a run is resumed with other Python parts than it began with."""
    for name, missing in (("network", None), ("optimizer", False)):
        before, given = saved.get(name, missing), now[name]
        if before == given:
            continue
        if not given:
            raise UserError(f"{workdir} was trained with {name}= given from Python: pass it again")
        raise UserError(
            f"{workdir} was trained with another network or optimizer than {name}= gives: pass the"
            " same, or choose another workdir"
        )


def restore_parts(saved: Record, network: Network | None = None) -> PythonParts:
    """The parts of a trained run, as far as inference needs them.

    Args:
      saved: the run's record.
      network: given again by the caller; it counts instead of the record.

    Raises:
      UserError: if the network was given from Python and can neither be imported nor is given.
    """
    recorded = saved.get("network")
    if recorded is None or network is not None:
        return PythonParts(network)
    parts = recorded if isinstance(recorded, list) else [recorded]
    modules = []
    for part in parts:
        if "path" not in part:
            raise UserError(
                f"the run was trained with a network given from Python, {shorten(part['class'])}:"
                f" {shorten(part['reason'])}, so pass network= again"
            )
        modules.append(_decode(part))
    return PythonParts(tuple(modules) if isinstance(recorded, list) else modules[0])


class _Unrecordable(Exception):
    """A value that another process could not build again."""


def _record_network(network: Network) -> Any:
    if isinstance(network, tuple):
        return [_record_network(part) for part in network]
    if not isinstance(network, nn.Module):
        raise UserError(f"network={shorten(network, 80)} is no Flax module (flax.linen.Module)")
    try:
        return _encode(network)
    except _Unrecordable as e:
        name = f"{type(network).__module__}:{type(network).__qualname__}"
        return {"class": name, "reason": str(e)}


def _encode(value: Any) -> Any:
    """`value` as JSON; dataclasses, Flax modules, functions and types by their import paths."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(k), _encode(v)] for k, v in value.items()]}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = OF_FLAX if isinstance(value, nn.Module) else ()
        fields = [f.name for f in dataclasses.fields(value) if f.init and f.name not in known]
        values = {name: _encode(getattr(value, name)) for name in fields}
        return {"path": _path_of(type(value)), "fields": values}
    if isinstance(value, type) or callable(value):
        try:
            return {"dtype": np.dtype(value).name}
        except TypeError:
            return {"import": _path_of(value)}
    raise _Unrecordable(f"it has a field of the type {type(value).__name__}")


def _path_of(item: Any) -> str:
    """`package.module:NAME` of a class or function that can be imported by it."""
    module, name = getattr(item, "__module__", None), getattr(item, "__qualname__", "")
    if module in (None, "__main__") or not name.isidentifier():
        raise _Unrecordable(f"{name or item} is not defined at the top of a module to import")
    path = f"{module}:{name}"
    try:
        found = import_path(path, "network")
    except UserError as e:
        raise _Unrecordable(str(e)) from e
    if found is not item:
        raise _Unrecordable(f"{path} is another object")
    return path


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_decode(item) for item in value["tuple"])
    if "dict" in value:
        return {_decode(k): _decode(v) for k, v in value["dict"]}
    if "dtype" in value:
        return np.dtype(value["dtype"])
    if "import" in value:
        return import_path(value["import"], "network")
    made: Any = import_path(value["path"], "network")
    if not isinstance(made, type) or not dataclasses.is_dataclass(made):
        raise UserError(f"network={shorten(value['path'])} is no Flax module or dataclass any more")
    try:
        return made(**{name: _decode(item) for name, item in value["fields"].items()})
    except TypeError as e:
        raise UserError(
            f"network={shorten(value['path'])} has other fields than when the run was trained"
            f" ({e}): pass network="
        ) from e
