"""Writes a model's folder: JSON files and safetensors weights, complete or not at all."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from aigc_jax.core.errors import StorageError, UserError, one_line, shorten
from aigc_jax.interop.parameters import BoundTensor, Shape, export_tensor
from aigc_jax.interop.safetensors_folder import INDEX_SUFFIX

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
MAX_SHARD_BYTES = 5_000_000_000


@contextlib.contextmanager
def new_folder(folder: str) -> Iterator[str]:
    """Yields a temporary folder, which is renamed to `folder` if the block raises nothing.

    Raises:
      UserError: if the folder exists and is not empty.
      StorageError: if it cannot be written.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    temporary = None
    try:
        if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
            raise UserError(f"{shorten(folder)} exists and is not an empty folder: name another")
        above = os.path.dirname(folder)
        os.makedirs(above, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{os.path.basename(folder)}.", dir=above)
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp makes it private
        yield temporary
        os.rename(temporary, folder)
        temporary = None
    except OSError as e:
        raise StorageError(f"{shorten(folder)} cannot be written: {one_line(e)}") from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(folder: str, name: str, content: Mapping[str, Any]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(content, f, indent=2, sort_keys=True, ensure_ascii=False)
        f.write("\n")


def check_dtype(dtype: str) -> None:
    """Raises UserError for a type that weights are not written in."""
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, but it is {shorten(dtype, 40)}")


def check_shapes(params: Mapping[str, np.ndarray], expected: Mapping[str, Shape]) -> None:
    """Raises UserError unless the parameters, by path, are those of the model."""
    for path in sorted(params.keys() | expected.keys()):
        found = params[path].shape if path in params else "none"
        if found != expected.get(path, "none"):
            raise UserError(
                f"the parameter {path} is of the shape {found}, but the model's is"
                f" {expected.get(path, 'none')}"
            )


def write_safetensors(
    folder: str,
    tensors: Sequence[BoundTensor],
    params: Mapping[str, np.ndarray],
    *,
    dtype: str,
    file: str,
    max_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes one file of weights, or several and their index; one is in memory at a time.

    Args:
      folder: exists.
      tensors: of the library, as `bind` gives them.
      params: our parameters by path.
      dtype: of the weights, one of `DTYPES`.
      file: name of the file, if one is enough.
      max_bytes: of one file.

    Raises:
      UserError: if a weight is too large for the type.
    """
    item = np.dtype(DTYPES[dtype]).itemsize
    shards: list[list[BoundTensor]] = [[]]
    room = max_bytes
    for tensor in tensors:
        size = math.prod(tensor.shape) * item
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(tensor)
        room -= size
    total, stem = 0, file.removesuffix(".safetensors")
    files: dict[str, str] = {}  # of the tensors
    for i, shard in enumerate(shards, 1):
        part = f"{stem}-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else file
        arrays = {t.name: _cast(t.name, export_tensor(t, params), dtype) for t in shard}
        total += sum(array.nbytes for array in arrays.values())
        files |= dict.fromkeys(arrays, part)
        save_file(arrays, os.path.join(folder, part), metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        write_json(folder, f"{file}{INDEX_SUFFIX}", index)


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Returns a tensor in the type of the file; UserError if a weight overflows."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array.astype(DTYPES[dtype]))
    if dtype == "float16" and np.isinf(cast).any() and not np.isinf(array).any():
        raise UserError(f"{name} has weights too large for float16: write bfloat16")
    return cast
