"""Reads a model's folder: JSON files and the tensors of one or several safetensors files.

Nothing is unpickled, nothing outside the folder is opened, and a file's header is compared with its
size before memory is taken. Tensors are read one at a time.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import safe_open

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import file_size, open_file
from aigc_jax.core.safetensors_file import check_tensors, safetensors_header
from aigc_jax.interop.parameters import BoundTensor, Shape, import_params

WEIGHTS = "model.safetensors"
INDEX_SUFFIX = ".index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON = 100_000_000  # bytes; real ones have thousands, tokenizers a few millions
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_json(path: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      UserError: if it cannot be read, is too large, or is not an object.
    """
    with open_file(path) as f:
        if file_size(f) > MAX_JSON:
            raise UserError(f"{shorten(path)} is too large: it has {file_size(f)} bytes")
        try:
            content = json.loads(f.read().decode("utf-8"), parse_int=_parse_int)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{shorten(path)} is not JSON: {one_line(e)}") from e
    if not isinstance(content, dict):
        raise UserError(f"{shorten(path)} must hold an object, but it is {shorten(content, 60)}")
    return content


def _parse_int(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"the number {shorten(digits, 40)} is too large")
    return int(digits)


class StoredTensors:
    """Tensors of safetensors files, each read on demand.

    Attributes:
      files: the file of each.
      shapes: the shape of each.
      dtypes: the safetensors type of each.
    """

    def __init__(self, paths: Iterable[str]):
        """Reads the headers.

        Raises:
          UserError: if a file is broken, or a tensor is in two of them.
        """
        self.files: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in paths:
            for name, entry in _header(path).items():
                if name == "__metadata__":
                    continue
                if name in self.files:
                    raise UserError(
                        f"the tensor {shorten(name, 100)} is in {shorten(self.files[name])} and"
                        f" in {shorten(path)}: remove one"
                    )
                self.files[name], self.dtypes[name] = path, entry["dtype"]
                self.shapes[name] = tuple(entry["shape"])

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as it is stored; bfloat16 as `ml_dtypes.bfloat16`."""
        path = self.files[name]
        try:
            with safe_open(os.path.expanduser(path), framework="np") as f:
                return f.get_tensor(name)
        except Exception as e:  # the file may have changed since
            raise UserError(f"{shorten(path)} cannot be read: {one_line(e)}") from e


def _header(path: str) -> dict[str, Any]:
    """Returns a safetensors file's header, checked against the file's size."""
    with open_file(path) as f:
        size = file_size(f)
        try:
            header = safetensors_header(f, size)
            check_tensors(header, size - f.tell())
        except (ValueError, RecursionError) as e:
            raise UserError(f"{shorten(path)} is not a safetensors file ({one_line(e)})") from e
    return header


def open_safetensors_folder(folder: str, weights: str = WEIGHTS) -> StoredTensors:
    """Opens the tensors of a model's folder.

    Args:
      folder: that holds them.
      weights: name of the file; if there are several, `weights` with `INDEX_SUFFIX` is the index.

    Raises:
      UserError: if there are no safetensors files, or files are missing or broken.
    """
    path = os.path.join(folder, weights)
    index = f"{path}{INDEX_SUFFIX}"
    if os.path.exists(path):
        return StoredTensors([path])
    if os.path.exists(index):
        return _sharded(folder, index)
    try:
        names = sorted(os.listdir(folder))
    except OSError as e:
        raise UserError(f"{shorten(folder)} cannot be read: {one_line(e)}") from e
    for name in names:
        if name.endswith(PICKLED):
            raise UserError(
                f"{shorten(folder)} has its weights in {shorten(name, 60)}, a pickle, which can run"
                " code and is not read: convert it to safetensors first"
            )
    raise UserError(
        f"{shorten(folder)} has neither {weights} nor {os.path.basename(index)}: is it a model's"
        " folder?"
    )


def _sharded(folder: str, index: str) -> StoredTensors:
    """Opens the files that an index names."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{shorten(index)} has no weight_map from tensors to files")
    for file in places.values():
        if not re.fullmatch(r"[\w.-]+\.safetensors", file, re.ASCII):
            raise UserError(
                f"{shorten(index)} names the file {shorten(file, 60)}: it must be a safetensors"
                " file beside it"
            )
    name_of_index = os.path.basename(index)
    paths = {file: os.path.join(folder, file) for file in sorted(set(places.values()))}
    for file, path in paths.items():
        if not os.path.exists(path):
            raise UserError(
                f"{shorten(folder)} lacks {file}, which {name_of_index} names: copy it there"
            )
    found = StoredTensors(paths.values())
    for name, file in places.items():
        if found.files.get(name) != paths[file]:
            raise UserError(
                f"the tensor {shorten(name, 100)} is not in {file}, where {name_of_index} has it"
            )
    return found


def canonical_names(
    stored: StoredTensors, rename: Callable[[str], str], buffers: Iterable[str], folder: str
) -> dict[str, str]:
    """Returns the name in the file of each tensor, by its current name in the library.

    Args:
      stored: tensors of the folder.
      rename: name in the file → current name, for folders that old versions have written.
      buffers: regular expressions of tensors that are left out.
      folder: for messages.

    Raises:
      UserError: if two tensors have the same current name.
    """
    found: dict[str, str] = {}
    for name in stored.files:
        current = rename(name)
        if current in found:
            raise UserError(
                f"{shorten(folder)} has {shorten(current, 100)} twice, by an old and a new name"
            )
        if not any(re.fullmatch(pattern, current) for pattern in buffers):
            found[current] = name
    return found


def import_folder(
    tensors: Sequence[BoundTensor],
    shapes: Mapping[str, Shape],
    stored: StoredTensors,
    found: Mapping[str, str],
    folder: str,
) -> tuple[dict[str, Any], str]:
    """Returns our parameters, float32, and the type in which the folder stores them.

    Args:
      tensors: of the library, as `bind` gives them.
      shapes: of our parameters, by path.
      stored: tensors of the folder.
      found: the name there of each tensor.
      folder: for messages.

    Raises:
      UserError: if a tensor is missing, of another shape, or of a type that is not supported.
    """
    dtypes = {stored.dtypes[found[tensor.name]] for tensor in tensors if tensor.name in found}
    for dtype in sorted(dtypes - set(DTYPES)):
        raise UserError(
            f"{shorten(folder)} has weights of the type {dtype}: convert them to one of"
            f" {', '.join(DTYPES)}"
        )
    available = {name: stored.shapes[file_name] for name, file_name in found.items()}
    params = import_params(
        tensors, shapes, available, lambda name: stored.read(found[name]), folder
    )
    return params, DTYPES[dtypes.pop()] if len(dtypes) == 1 else "float32"


def refuse_unknown(
    found: Mapping[str, str], tensors: Sequence[BoundTensor], what: str, folder: str
) -> None:
    """Raises UserError if the folder has a tensor that the model does not have.

    Args:
      found: name in the file of each tensor, by its current name.
      tensors: of the library, as `bind` gives them.
      what: the library's model.
      folder: for messages.
    """
    for name in sorted(found.keys() - {tensor.name for tensor in tensors}):
        raise UserError(
            f"{shorten(folder)} has the tensor {shorten(found[name], 100)}, which the {what} that"
            " its config.json describes does not have"
        )
