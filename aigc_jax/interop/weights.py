"""The tensors of a folder, in one safetensors file or several, read one at a time.

Nothing is unpickled, nothing outside the folder is opened, and a file's header is compared with its
size before a tensor takes memory.
"""

import json
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from safetensors import safe_open

from aigc_jax.core import safetensors_file as readers
from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import file_size, open_file

WEIGHTS = "model.safetensors"
INDEX_SUFFIX = ".index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_JSON = 100_000_000  # bytes; real ones have thousands, tokenizers a few millions
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_json(path: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: if it cannot be read, is too large, or holds something else.
    """
    with open_file(path) as f:
        if file_size(f) > MAX_JSON:
            raise UserError(f"{shorten(path)} is too large: it has {file_size(f)} bytes")
        try:
            content = json.loads(f.read().decode("utf-8"), parse_int=_whole)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{shorten(path)} is not JSON: {one_line(e)}") from e
    if not isinstance(content, dict):
        raise UserError(f"{shorten(path)} must hold an object, but it is {shorten(content, 60)}")
    return content


def _whole(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"the number {shorten(digits, 40)} is too large")
    return int(digits)


class Tensors:
    """The tensors of safetensors files, read when asked for.

    Attributes:
      files: the file of each.
      shapes: the shape of each.
      dtypes: the safetensors type of each.
    """

    def __init__(self, paths: Iterable[str]):
        """Reads the headers.

        Raises:
          UserError: if a file is broken, or a tensor stands in two.
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
                        f"the tensor {shorten(name, 100)} stands in {shorten(self.files[name])}"
                        " and in"
                        f" {shorten(path)}: remove one"
                    )
                self.files[name], self.dtypes[name] = path, entry["dtype"]
                self.shapes[name] = tuple(entry["shape"])

    def read(self, name: str) -> np.ndarray:
        """A tensor as it is stored; bfloat16 as `ml_dtypes.bfloat16`."""
        path = self.files[name]
        try:
            with safe_open(os.path.expanduser(path), framework="np") as f:
                return f.get_tensor(name)
        except Exception as e:  # the file may have changed, or have gone, since
            raise UserError(f"{shorten(path)} cannot be read: {one_line(e)}") from e


def _header(path: str) -> dict[str, Any]:
    """A safetensors file's header, compared with the file's size."""
    with open_file(path) as f:
        size = file_size(f)
        try:
            header = readers.safetensors_header(f, size)
            readers.check_tensors(header, size - f.tell())
        except (ValueError, RecursionError) as e:
            raise UserError(f"{shorten(path)} is not a safetensors file ({one_line(e)})") from e
    return header


def open_folder(folder: str, weights: str = WEIGHTS) -> Tensors:
    """The tensors of a model's folder.

    Args:
      folder: what holds them.
      weights: the file, if it is one; of several, `weights` with a suffix is the index.

    Raises:
      UserError: if there are none in safetensors files, or files are missing or broken.
    """
    whole = os.path.join(folder, weights)
    index = f"{whole}{INDEX_SUFFIX}"
    if os.path.exists(whole):
        return Tensors([whole])
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


def _sharded(folder: str, index: str) -> Tensors:
    """The tensors of the files that an index names."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{shorten(index)} has no weight_map from tensors to files")
    for file in places.values():
        if not re.fullmatch(r"[\w.-]+\.safetensors", file, re.ASCII):
            raise UserError(
                f"{shorten(index)} names the file {shorten(file, 60)}: it must be a safetensors"
                " file"
                " beside it"
            )
    name_of_index = os.path.basename(index)
    paths = {file: os.path.join(folder, file) for file in sorted(set(places.values()))}
    for file, path in paths.items():
        if not os.path.exists(path):
            raise UserError(
                f"{shorten(folder)} lacks {file}, which {name_of_index} names: copy it there"
            )
    found = Tensors(paths.values())
    for name, file in places.items():
        if found.files.get(name) != paths[file]:
            raise UserError(
                f"the tensor {shorten(name, 100)} is not in {file}, where {name_of_index} has it"
            )
    return found
