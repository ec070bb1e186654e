"""GGUF files: metadata and tensors, as llama.cpp writes them (versions 2 and 3, little-endian).

Every size in the header is checked against the file's before memory is taken; tensors are read and
dequantised one at a time. Types and dequantisation are those of the package `gguf`, its GGUFReader
is not used: it follows a list's claimed length past the end of the file without an error, and makes
array objects for each token (of a vocabulary of 152,000: 7.8 s and 509 MiB, against 0.2 s and
28 MiB here). Checking the header before it reads would take the parser below as well.
"""

import math
import mmap
import os
import struct
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import open_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
           11: "<q", 12: "<d"}  # fmt: skip
FLOAT32, STRING, ARRAY = 6, 8, 9
MAX_ITEMS = 5_000_000  # in a list; vocabularies and their merges have fewer than a million
CHUNK = 2**24  # weights dequantised at once


class TensorInfo(NamedTuple):
    """Shape, type and position of a tensor.

    Attributes:
      shape: outermost axis first.
      kind: ggml's number of the type.
      offset: bytes from the start of the file.
      size: bytes.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


class GgufFile:
    """An open GGUF file.

    Attributes:
      path: of the file.
      metadata: its keys and values.
      tensors: its tensors by name.
    """

    def __init__(self, path: str):
        """Reads the header.

        Raises:
          UserError: if the file is broken, or the package gguf is missing.
        """
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
        except ImportError as e:
            raise UserError(
                "reading GGUF files needs the package gguf: pip install 'aigc-jax[gguf]'"
            ) from e
        self._sizes, self._types, self._quants = GGML_QUANT_SIZES, GGMLQuantizationType, quants
        self.path = os.path.expanduser(path)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        with open_file(path) as f:
            try:
                self._data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
                self._at = 0
                self._read_header()
            except (ValueError, KeyError, OSError, OverflowError, struct.error) as e:
                raise UserError(
                    f"{shorten(path)} is not a complete GGUF file: {one_line(e)}"
                ) from e

    def _take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> str:
        length = self._take("<Q")
        if length > len(self._data) - self._at:
            raise ValueError("it is cut off")
        text = self._data[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind in SCALARS:
            value = self._take(SCALARS[kind])
            # The shortest decimal: 1e-5 instead of the nearest 32-bit number.
            return float(str(np.float32(value))) if kind == FLOAT32 else value
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise ValueError(f"its metadata has the unknown type {kind}")
        item, count = self._take("<I"), self._take("<Q")
        if count > MAX_ITEMS or (item not in SCALARS and item != STRING):
            raise ValueError(f"its metadata has a list of {count} items of the type {item}")
        if item == STRING:
            return [self._string() for _ in range(count)]
        form = f"<{count}{SCALARS[item][1]}"
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return list(values)

    def _read_header(self) -> None:
        if self._data[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._take("<I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}")
        tensors, keys = self._take("<Q"), self._take("<Q")
        for _ in range(keys):
            key = self._string()
            if key in self.metadata:
                raise ValueError(f"it has the key {shorten(key, 60)} twice")
            self.metadata[key] = self._value(self._take("<I"))
        found = []
        for _ in range(tensors):
            name, axes = self._string(), self._take("<I")
            if axes > 4:
                raise ValueError(f"the tensor {shorten(name, 60)} has {axes} axes")
            shape = tuple(self._take("<Q") for _ in range(axes))[::-1]
            found.append((name, shape, self._take("<I"), self._take("<Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its alignment is {shorten(alignment, 40)}")
        start = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in found:
            if name in self.tensors:
                raise ValueError(f"it has the tensor {shorten(name, 60)} twice")
            self.tensors[name] = self._tensor_info(name, shape, kind, start + offset)

    def _tensor_info(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorInfo:
        block, block_bytes = self._sizes[self._types(kind)]
        row = shape[-1] if shape else 1
        if row % block:
            raise ValueError(f"the rows of {shorten(name, 60)} do not consist of whole blocks")
        size = math.prod(shape) // block * block_bytes
        if offset + size > len(self._data):
            raise ValueError(f"the tensor {shorten(name, 60)} is cut off")
        return TensorInfo(shape, kind, offset, size)

    def kind(self, name: str) -> str:
        """Returns the name of a tensor's type, such as Q4_1."""
        return self._types(self.tensors[name].kind).name

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in float32.

        Raises:
          UserError: if it is of a type that the package gguf cannot dequantise.
        """
        stored = self.tensors[name]
        out = np.empty(stored.shape, np.float32)
        rows = out.reshape(-1, stored.shape[-1]) if out.ndim else out.reshape(1, 1)
        if not rows.size:
            return out
        data = np.frombuffer(self._data, np.uint8, stored.size, stored.offset)
        data, step = data.reshape(len(rows), -1), max(CHUNK // rows.shape[1], 1)
        for i in range(0, len(rows), step):
            try:
                part = self._quants.dequantize(data[i : i + step], self._types(stored.kind))
            except NotImplementedError as e:
                raise UserError(
                    f"{shorten(self.path)} has {name} in the type {self.kind(name)}, which cannot"
                    " be dequantised: take a file in F16 or Q8_0"
                ) from e
            rows[i : i + step] = part
        return out
