"""Reads the tensors of a state dict that `torch.save` wrote, without running its pickle.

Both formats are read: the zip archive of PyTorch 1.6 and later, and the older stream of pickles.
Sizes are checked against the file before an array is made.
"""

import io
import math
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file
from aigc_jax.modalities.image.metrics.safe_unpickler import SafeUnpickler, Storage, TensorView

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
MAX_PICKLE = 50_000_000  # bytes of a zip's data.pkl; real ones have a few hundred thousand
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which files have a state dict


def read_torch(path: str) -> dict[str, np.ndarray]:
    """Returns `{name: array}`, read-only, of a state dict.

    Raises:
      UserError: if the file has no state dict, is damaged, or its pickle has anything but tensors.
    """
    with open_file(path) as f:
        check_memory(file_size(f), f"the content of {shorten(path)}")
        try:
            content = f.read()
            stream = io.BytesIO(content)
            zipped = content[:4] == b"PK\x03\x04"
            found = _read_zip(stream) if zipped else _read_stream(stream, content)
        except UserError:
            raise
        except Exception as e:  # zipfile and pickle raise all kinds
            raise UserError(
                f"{shorten(path)} is not a state dict that torch.save wrote ({one_line(e)}):"
                " save one,"
                " or convert it to safetensors"
            ) from e
    return found


def _read_zip(f: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(f) as archive:
        members = {m.filename: m for m in archive.infolist()}
        (top,) = {name.partition("/")[0] for name in members}
        if f"{top}/data.pkl" not in members:
            raise ValueError("it has no data.pkl; TorchScript archives are not read")
        if f"{top}/constants.pkl" in members:
            raise ValueError("it is a TorchScript program, not a state dict")

        def read(name: str, limit: int) -> bytes:
            member = members[f"{top}/{name}"]
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > limit:
                raise ValueError(f"{name} is compressed or has {member.file_size} bytes")
            return archive.read(member)

        if f"{top}/byteorder" in members and read("byteorder", 10) != b"little":
            raise ValueError("its numbers are big-endian")
        top_level = SafeUnpickler(io.BytesIO(read("data.pkl", MAX_PICKLE))).load()

        def numbers(storage: Storage) -> np.ndarray:
            claim = storage.length * np.dtype(storage.dtype).itemsize
            data = read(f"data/{storage.key}", claim)
            if len(data) != claim:
                raise ValueError(f"storage {storage.key} has {len(data)} bytes, not {claim}")
            return np.frombuffer(data, storage.dtype)

        return _arrays(top_level, _Once(numbers))


def _read_stream(f: BinaryIO, content: bytes) -> dict[str, np.ndarray]:
    """Reads the format before PyTorch 1.6: five pickles, then count and numbers of each storage."""
    if SafeUnpickler(f).load() != LEGACY_MAGIC or SafeUnpickler(f).load() != LEGACY_VERSION:
        raise ValueError("it has neither a zip archive nor the magic number of older files")
    system = SafeUnpickler(f).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    unpickler = SafeUnpickler(f)
    top_level, keys = unpickler.load(), SafeUnpickler(f).load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(unpickler.storages):
        raise ValueError("its list of storages differs from that of its tensors")
    arrays: dict[str, np.ndarray] = {}
    for key in keys:
        storage = unpickler.storages[key]
        (count,) = np.frombuffer(f.read(8), np.int64)
        claim = storage.length * np.dtype(storage.dtype).itemsize
        if count != storage.length or f.tell() + claim > len(content):
            raise ValueError(f"storage {shorten(key, 40)} is cut off")
        arrays[key] = np.frombuffer(content, storage.dtype, storage.length, f.tell())
        f.seek(claim, io.SEEK_CUR)
    return _arrays(top_level, lambda storage: arrays[storage.key])


class _Once:
    """Reads each storage once, however many tensors are views of it."""

    def __init__(self, read: Callable[[Storage], np.ndarray]):
        self._read, self._found = read, dict[str, np.ndarray]()

    def __call__(self, storage: Storage) -> np.ndarray:
        if storage.key not in self._found:
            self._found[storage.key] = self._read(storage)
        array = self._found[storage.key]
        if array.dtype != storage.dtype or len(array) != storage.length:
            raise ValueError(f"storage {shorten(storage.key, 40)} has two types")
        return array


def _arrays(top_level: object, numbers: Callable[[Storage], np.ndarray]) -> dict[str, np.ndarray]:
    tensors = top_level
    for name in WRAPPERS:
        if isinstance(tensors, dict) and isinstance(tensors.get(name), dict):
            tensors = tensors[name]
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError("it does not hold a dictionary of tensors")
    for name, view in tensors.items():
        if not isinstance(name, str) or not isinstance(view, TensorView):
            raise ValueError(f"its entry {shorten(name, 60)} is not a tensor")
    return {name: _array(view, numbers(view.storage)) for name, view in tensors.items()}


def _array(view: TensorView, numbers: np.ndarray) -> np.ndarray:
    """Returns a view of the storage: without copies, memory is bounded by the file's size."""
    count = math.prod(view.size)
    end = view.offset + sum((n - 1) * s for n, s in zip(view.size, view.stride, strict=True)) + 1
    if count > len(numbers) or (count and end > len(numbers)):
        raise ValueError(f"a tensor of {shorten(view.size, 60)} reaches beyond its storage")
    if not count:
        return np.zeros(view.size, numbers.dtype)
    item = numbers.dtype.itemsize
    strides = [s * item for s in view.stride]
    return np.lib.stride_tricks.as_strided(
        numbers[view.offset :], view.size, strides, writeable=False
    )
