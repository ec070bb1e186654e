"""npz files: members are checked against the file's size first, and never unpickled."""

import zipfile
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file
from aigc_jax.core.safetensors_file import array_bytes


def read_npz_file(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file.

    Raises:
      UserError: if it is not a zip of complete .npy members without pickles, or one of them claims
        more than the file or the machine's memory can hold.
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
                    if member.compress_size > size:  # zipfile would allocate it
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
    """Returns the array of a .npy stream of `size` bytes; ValueError if incomplete or pickled."""
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
    claim = array_bytes(shape, dtype.itemsize)
    if claim != size - data.tell():
        raise ValueError(f"its header claims {shorten(shape, 80)}, which is not what follows")
    content = data.read(claim)
    if len(content) != claim:
        raise ValueError("it is cut off")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")
