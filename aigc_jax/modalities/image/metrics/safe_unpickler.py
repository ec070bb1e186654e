"""Restricted unpickler for state dicts that `torch.save` wrote: no pickle can run code through it.

A pickle is a program for a small stack machine that imports and calls what it names. Here only the
opcodes that state dicts consist of are known, and a name is never imported: it becomes a `Global`,
which makes empty dictionaries and descriptions of tensors and refuses every other call.
"""

import dataclasses
import pickle
import pickletools
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from aigc_jax.core.errors import shorten

DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING",
    "BINSTRING", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND",
    "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID",
)  # fmt: skip


class Storage(NamedTuple):
    """Numbers of one type that are stored elsewhere in the file, under a key."""

    key: str
    dtype: Any
    length: int


class TensorView(NamedTuple):
    """A tensor: offset, size and strides in a storage, all in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class StateDict(dict[str | int, Any]):
    """The only dictionary that a pickle can make: its keys are strings or integers."""

    def __setitem__(self, key: str | int, value: Any) -> None:
        if not isinstance(key, (str, int)):  # before it is hashed, which may take for ever
            raise ValueError(f"it has a dictionary with a key of the type {type(key).__name__}")
        super().__setitem__(key, value)


@dataclasses.dataclass(frozen=True)
class Global:
    """A function or class that the pickle names; it is not imported."""

    name: str

    def __call__(self, *args: Any) -> StateDict | TensorView:
        if self.name == "collections.OrderedDict" and not args:
            return StateDict()
        if self.name != "torch._utils._rebuild_tensor_v2" or len(args) < 4:
            raise ValueError(f"its pickle calls {shorten(self.name, 60)}, which is not run")
        storage, offset, size, stride = args[:4]
        sizes = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
        numbers = (offset, *size, *stride) if sizes else (None,)
        if len(numbers) > 65 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise ValueError("it has a tensor with an invalid shape")
        if not isinstance(storage, Storage):
            raise ValueError("it has a tensor without a storage")
        return TensorView(storage, offset, size, stride)


class _Dispatch(dict[int, Any]):
    """Methods by opcode; ValueError for the others."""

    def __missing__(self, code: int) -> Any:
        names = {op.code: op.name for op in pickletools.opcodes}
        name = names.get(chr(code), code)
        raise ValueError(f"its pickle has the opcode {name}, which is not run")


# Python's own implementation: that in C has no table of opcodes, and takes memory for a memo as
# large as a pickle asks for.
class SafeUnpickler(pickle._Unpickler):
    """Reads one pickle of a state dict.

    Attributes:
      storages: the storages that it refers to, by key.
    """

    def __init__(self, f: BinaryIO):
        super().__init__(f)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Global:
        return Global(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Storage:
        """Returns the storage that `("storage", type, key, location, count)` refers to."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError("its pickle refers to something other than a storage")
        _, kind, key, _, length = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("it has a storage that is a part of another")
        module, _, name = kind.name.rpartition(".") if isinstance(kind, Global) else ("", "", "")
        if module not in ("torch", "torch.storage") or name not in DTYPES:
            raise ValueError(f"it has a storage of the unknown type {shorten(name, 60)}")
        if not isinstance(key, str) or not key.isalnum() or type(length) is not int or length < 0:
            raise ValueError("it has a storage without a key or length")
        storage = Storage(key, DTYPES[name], length)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {shorten(key, 40)} has two types")
        return storage

    def _load_empty_dict(self) -> None:
        self.append(StateDict())  # type: ignore[attr-defined]

    def _load_build(self) -> None:
        """Drops the versions of modules that PyTorch notes as a dictionary's attributes."""
        stack = self.stack  # type: ignore[attr-defined]
        stack.pop()
        if not isinstance(stack[-1], StateDict):
            raise ValueError("its pickle sets attributes of something other than a dictionary")

    dispatch = _Dispatch(
        {code: pickle._Unpickler.dispatch[code] for op in OPCODES for code in getattr(pickle, op)}
        | {pickle.EMPTY_DICT[0]: _load_empty_dict, pickle.BUILD[0]: _load_build}
    )
