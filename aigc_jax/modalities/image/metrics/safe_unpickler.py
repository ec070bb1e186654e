"""A pickle of a state dict, read without running it.

A pickle is a program: it names functions and calls them. Here a small machine reads it that knows
just what a state dict is made of (dictionaries, tuples, texts, numbers, storages, and tensors as
views of those) and refuses all else; nothing is imported and nothing is called, whatever it names.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

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


@dataclasses.dataclass(frozen=True)
class Name:
    """A function or class that the pickle names; it stays a name."""

    text: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers of one type that stand elsewhere in the file, under a key."""

    key: str
    dtype: Any
    count: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: a storage seen from an offset with a size and strides, all in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Dict(dict):
    """The only kind of object that a state dict's pickle may make."""


_MARK = object()


class Machine:
    """Reads one pickle; ValueError for whatever a state dict has no use for."""

    def __init__(self, f: BinaryIO):
        self._f = f
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self._operations: dict[str, Callable[[Any], None]] = {
            "GLOBAL": self._global,
            "STACK_GLOBAL": self._stack_global,
            "REDUCE": self._reduce,
            "BUILD": self._build,
            "BINPERSID": self._refer,
            "TUPLE": lambda _: self._stack.append(tuple(self._since_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._set([*reversed((self._stack.pop(), self._stack.pop()))]),
            "SETITEMS": lambda _: self._set(self._since_mark()),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "BINGET": lambda index: self._stack.append(self._memo[index]),
            "LONG_BINGET": lambda index: self._stack.append(self._memo[index]),
        }

    def run(self) -> Any:
        """The value at which the pickle stops; the file stands behind it then."""
        for opcode, argument, _ in pickletools.genops(self._f):
            name = opcode.name
            if name in PLAIN:
                self._stack.append(argument)
            elif name in FIXED:
                self._stack.append(FIXED[name]())
            elif name == "STOP":
                (value,) = self._stack
                return value
            elif name in self._operations:
                self._operations[name](argument)
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"its pickle has a {name}, which state dicts do not need")
        raise ValueError("its pickle does not end")

    def _since_mark(self) -> list[Any]:
        at = max(i for i, value in enumerate(self._stack) if value is _MARK)
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def _global(self, argument: str) -> None:
        self._stack.append(Name(argument.replace(" ", ".")))

    def _stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(Name(f"{module}.{name}"))

    def _reduce(self, _: None) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if name == Name("collections.OrderedDict") and arguments == ():
            self._stack.append(Dict())
        elif name == Name("torch._utils._rebuild_tensor_v2") and isinstance(arguments, tuple):
            self._stack.append(_view(arguments))
        else:
            called = name.text if isinstance(name, Name) else type(name).__name__
            raise ValueError(f"its pickle calls {shorten(called, 60)}, which is not run")

    def _build(self, _: None) -> None:
        """What PyTorch notes of modules' versions; it is left out."""
        self._stack.pop()
        if not isinstance(self._stack[-1], Dict):
            raise ValueError("its pickle gives attributes to what is no dictionary")

    def _refer(self, _: None) -> None:
        which = self._stack.pop()
        if not isinstance(which, tuple) or len(which) < 5 or which[0] != "storage":
            raise ValueError("its pickle refers to what is no storage")
        _, kind, key, _, count = which[:5]
        if len(which) > 5 and which[5] is not None:
            raise ValueError("it has a storage that is a part of another")
        module, _, name = kind.text.rpartition(".") if isinstance(kind, Name) else ("", "", "")
        if module not in ("torch", "torch.storage") or name not in DTYPES:
            raise ValueError(f"it has numbers of the kind {shorten(kind, 60)}")
        if not isinstance(key, str) or not key.isalnum() or type(count) is not int or count < 0:
            raise ValueError("a storage of it has no key or count")
        storage = Storage(key, DTYPES[name], count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {shorten(key, 40)} is of two kinds")
        self._stack.append(storage)

    def _tuple(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        if len(values) < count:
            raise ValueError("its pickle is damaged")
        self._stack[-count:] = [values]

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("its pickle is damaged")
        self._stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise ValueError("its pickle is damaged")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise ValueError(f"it has a dictionary with the key {shorten(type(key).__name__)}")
            target[key] = value

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]


PLAIN = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "SHORT_BINSTRING", "BINSTRING",
)  # fmt: skip
FIXED: dict[str, Any] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": Dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def _view(arguments: tuple[Any, ...]) -> View:
    """A tensor out of what its pickle would hand to torch._utils._rebuild_tensor_v2."""
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise ValueError("it has a tensor without a storage")
    sizes = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    numbers = (offset, *size, *stride) if sizes else (None,)
    if len(numbers) > 65 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError("it has a tensor of no possible shape")
    return View(storage, offset, size, stride)
