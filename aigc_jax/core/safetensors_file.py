"""safetensors files: the header is checked against the file's size before memory is allocated."""

import json
import math
import os
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file

MAX_HEADER = 100_000_000  # bytes of a safetensors header; the format's own limit
# Bytes per element of the safetensors types that numpy can hold (BF16 with ml_dtypes).
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4,
    "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def array_bytes(shape: Iterable[Any], item_size: int) -> int:
    """Returns the bytes of an array; ValueError if the shape is invalid."""
    shape = tuple(shape)
    if not all(type(n) is int and 0 <= n < 2**63 for n in shape) or len(shape) > 32:
        raise ValueError(f"the shape {shorten(shape, 80)} is invalid")
    return math.prod(shape) * item_size


def read_safetensors_file(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file; bfloat16 ones as `ml_dtypes.bfloat16`.

    Types, shapes and offsets are checked against the file's size before an array is read.

    Raises:
      UserError: if the file is damaged, or has a type that numpy does not have.
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
        except Exception as e:  # whatever else the library refuses
            raise UserError(f"{shorten(path)} is not a safetensors file ({one_line(e)})") from e


def safetensors_header(f: BinaryIO, size: int) -> dict[str, Any]:
    """Returns `{name: {dtype, shape, data_offsets}}`; ValueError if it does not fit the file.

    Args:
      f: positioned at the beginning of the file; afterwards at the end of the header.
      size: bytes in the file.
    """
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
    """Returns a JSON object; ValueError if it has a key twice."""
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a name is twice in its header")
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
        claim = array_bytes(shape, ITEM_SIZES[dtype])
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
