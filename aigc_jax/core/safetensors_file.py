"""Files of named arrays, npz and safetensors: checked whole before an array takes memory.

Nothing is unpickled. What a header claims is compared with what the file holds first.
"""

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file

MAX_HEADER = 100_000_000  # bytes of a safetensors header; the format's own limit
# Bytes per element of the safetensors types that numpy can hold (BF16 with ml_dtypes).
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4,
    "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def open_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file.

    Raises:
      UserError: if it is no zip of whole .npy members without pickles, or one of them claims more
        than the file or the machine's memory can hold.
    """
    arrays = {}
    with open_file(path) as f:
        size = file_size(f)
        try:
            with zipfile.ZipFile(f) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
                total = sum(member.file_size for member in members)
                check_memory(total, f"the content of {shorten(path)}")
                for member in members:
                    if member.compress_size > size:  # zipfile would take memory for it
                        raise ValueError(f"{member.filename} claims {member.compress_size} bytes")
                    name = member.filename.removesuffix(".npy")
                    if name in arrays:
                        raise ValueError(f"it has the array {name} twice")
                    with archive.open(member) as data:
                        try:
                            arrays[name] = _read_npy(data, member.file_size)
                        except ValueError as e:
                            raise ValueError(f"{name}: {e}") from e
        except UserError:
            raise
        except Exception as e:  # zipfile and numpy's header parser raise all kinds
            raise UserError(f"{shorten(path)} is not an npz of plain arrays ({one_line(e)})") from e
    return arrays


def _read_npy(data: Any, size: int) -> np.ndarray:
    """The array of one .npy stream of `size` bytes; ValueError if it is not plain or not whole."""
    version = np.lib.format.read_magic(data)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:  # version 3 is for names of fields
        raise ValueError(f"its .npy version is {version}")
    shape, fortran_order, dtype = readers[version](data)
    if dtype.kind not in "?biufcSU":
        raise ValueError(f"it holds {dtype}, not plain numbers")
    claim = _claim(shape, dtype.itemsize)
    if claim != size - data.tell():
        raise ValueError(f"its header claims {shorten(shape, 80)}, which is not what follows")
    content = data.read(claim)
    if len(content) != claim:
        raise ValueError("it is cut off")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")


def _claim(shape: Iterable[Any], item_size: int) -> int:
    """Bytes of an array; ValueError if the shape is none."""
    shape = tuple(shape)
    if not all(type(n) is int and 0 <= n < 2**63 for n in shape) or len(shape) > 32:
        raise ValueError(f"the shape {shorten(shape, 80)} cannot be")
    return math.prod(shape) * item_size


def open_safetensors(path: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; bfloat16 ones as `ml_dtypes.bfloat16`.

    Header, types, shapes and offsets are compared with the file's size before an array is read.

    Raises:
      UserError: if it is not a whole safetensors file, or of a type that numpy cannot hold.
    """
    from safetensors import safe_open

    with open_file(path) as f:
        size = file_size(f)
        try:
            header = safetensors_header(f, size)
            data_size = size - f.tell()
            check_tensors(header, data_size)
        except (ValueError, RecursionError) as e:  # ValueError: also JSON's and Unicode's
            raise UserError(f"{shorten(path)} is not a safetensors file ({one_line(e)})") from e
        check_memory(data_size, f"the content of {shorten(path)}")
        try:
            with safe_open(os.path.expanduser(path), framework="np") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        except Exception as e:  # whatever else the library finds wrong
            raise UserError(f"{shorten(path)} is not a safetensors file ({one_line(e)})") from e


def safetensors_header(f: io.BufferedIOBase, size: int) -> dict[str, Any]:
    """`{name: {dtype, shape, data_offsets}}`, read no further than the file goes."""
    length_bytes = f.read(8)
    if len(length_bytes) < 8:
        raise ValueError("it is cut off")
    (length,) = struct.unpack("<Q", length_bytes)
    if length > min(size - 8, MAX_HEADER):
        raise ValueError(f"its header claims {length} bytes")
    header = json.loads(f.read(length).decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError if a key stands in it twice."""
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return record


def check_tensors(header: dict[str, Any], data_size: int) -> None:
    """Raises ValueError unless the tensors fill the data exactly, one after the other."""
    spans = []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the entry {shorten(name, 80)} is not a tensor")
        dtype, shape, offsets = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
            known = ", ".join(ITEM_SIZES)
            raise ValueError(
                f"{shorten(name, 80)} is of the type {shorten(dtype, 40)}: convert it to one of"
                f" {known}"
            )
        if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
            raise ValueError(f"the entry {shorten(name, 80)} is not a tensor")
        claim = _claim(shape, ITEM_SIZES[dtype])
        if not all(type(n) is int for n in offsets) or offsets[1] - offsets[0] != claim:
            raise ValueError(
                f"{shorten(name, 80)} claims the shape {shorten(shape, 80)} at the bytes"
                f" {shorten(offsets, 80)}"
            )
        spans.append(tuple(offsets))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise ValueError(f"its tensors leave or share bytes at {end}")
        end = last
    if end != data_size:
        raise ValueError(f"its tensors claim {end} bytes, but {data_size} follow the header")
