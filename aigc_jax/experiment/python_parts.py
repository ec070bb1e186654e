"""Networks and optimizers passed from Python, and their record in a workdir.

A network is recorded by its import path and its fields, so that a new process builds the same one.
Its module is imported, like those in the config field `plugins`: evaluate only workdirs whose
packages you trust.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import numpy as np
import optax

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.registry import import_path

# A tuple for families with several networks: (generator, critic) for a GAN.
Network: TypeAlias = nn.Module | tuple[nn.Module, ...]
Optimizer: TypeAlias = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]
Record = dict[str, Any]
OF_FLAX = ("parent", "name")  # fields of every Flax module, not part of its configuration


@dataclasses.dataclass(frozen=True)
class PythonParts:
    """Parts of a run passed from Python instead of being built from the config.

    Attributes:
      network: a Flax module that replaces that of `model.name`, with the same call signature; a
        tuple for families with several networks.
      optimizer: an Optax transformation that replaces the section `optim`, or one per player.
    """

    network: Network | None = None
    optimizer: Optimizer | None = None

    def record(self) -> Record:
        """Returns plain JSON values that describe the parts, to be saved in the workdir."""
        network = None if self.network is None else _record_network(self.network)
        return {"network": network, "optimizer": self.optimizer is not None}

    def optimizer_of(self, player: str) -> optax.GradientTransformation | None:
        """Returns the transformation of a player; None if no optimizer was passed.

        Raises:
          UserError: if optimizers were passed, but none for this player.
        """
        if isinstance(self.optimizer, Mapping):
            if player not in self.optimizer:
                raise UserError(
                    f"optimizer= has no transformation for the player '{player}', only for"
                    f" {', '.join(map(str, self.optimizer))}"
                )
            return self.optimizer[player]
        return self.optimizer


def check_same_parts(workdir: str, saved: Record, now: Record) -> None:
    """Raises UserError if a run is resumed with other Python parts than it was started with."""
    for name, missing in (("network", None), ("optimizer", False)):
        before, given = saved.get(name, missing), now[name]
        if before == given:
            continue
        if not given:
            raise UserError(f"{workdir} was trained with {name}= passed from Python: pass it again")
        raise UserError(
            f"{workdir} was trained with another {name}=: pass the same one, or choose another"
            " workdir"
        )


def restore_parts(saved: Record, network: Network | None = None) -> PythonParts:
    """Restores the parts of a trained run that inference needs.

    Args:
      saved: the run's record.
      network: network passed by the caller, which replaces the recorded one.

    Raises:
      UserError: if the network was passed from Python, cannot be imported, and is not passed again.
    """
    recorded = saved.get("network")
    if recorded is None or network is not None:
        return PythonParts(network)
    parts = recorded if isinstance(recorded, list) else [recorded]
    modules = []
    for part in parts:
        if "path" not in part:
            raise UserError(
                f"the run was trained with a network passed from Python, {shorten(part['class'])}:"
                f" {shorten(part['reason'])}, so pass network= again"
            )
        modules.append(_decode(part))
    return PythonParts(tuple(modules) if isinstance(recorded, list) else modules[0])


class _Unrecordable(Exception):
    """Raised for a value that another process cannot rebuild."""


def _record_network(network: Network) -> Any:
    if isinstance(network, tuple):
        return [_record_network(part) for part in network]
    if not isinstance(network, nn.Module):
        raise UserError(f"network={shorten(network, 80)} is not a Flax module (flax.linen.Module)")
    try:
        return _encode(network)
    except _Unrecordable as e:
        name = f"{type(network).__module__}:{type(network).__qualname__}"
        return {"class": name, "reason": str(e)}


def _encode(value: Any) -> Any:
    """Encodes `value` as JSON; dataclasses, modules, functions and types by import path."""
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
    """Returns the import path `package.module:NAME` of a class or function."""
    module, name = getattr(item, "__module__", None), getattr(item, "__qualname__", "")
    if module in (None, "__main__") or not name.isidentifier():
        raise _Unrecordable(
            f"{name or item} is not defined at the top level of an importable module"
        )
    path = f"{module}:{name}"
    try:
        found = import_path(path, "network")
    except UserError as e:
        raise _Unrecordable(str(e)) from e
    if found is not item:
        raise _Unrecordable(f"{path} refers to another object")
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
        raise UserError(f"network={shorten(value['path'])} is no longer a Flax module or dataclass")
    try:
        return made(**{name: _decode(item) for name, item in value["fields"].items()})
    except TypeError as e:
        raise UserError(
            f"network={shorten(value['path'])} has other fields than when the run was trained"
            f" ({e}): pass network="
        ) from e
