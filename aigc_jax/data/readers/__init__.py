"""Readers of people's own files: image folders, text, JSONL, npz, safetensors and IDX.

Each reader checks what it reads; a file that it cannot take is named in a `UserError`.
"""

import os
from collections.abc import Callable

from aigc_jax.data.readers.arrays import read_idx, read_npz, read_safetensors
from aigc_jax.data.readers.content import Content
from aigc_jax.data.readers.folder import read_folder
from aigc_jax.data.readers.text import read_jsonl, read_text
from aigc_jax.errors import UserError, shown


def read(source: str, *, image_size: int = 0, text_field: str = "text") -> Content:
    """What `--from=KIND:PATH` names.

    Raises:
      UserError: for an unknown kind, or files that cannot be taken or held in memory.
    """
    kind, _, path = source.partition(":")
    readers: dict[str, Callable[[], Content]] = {
        "folder": lambda: read_folder(os.path.expanduser(path), image_size),
        "text": lambda: read_text(path),
        "jsonl": lambda: read_jsonl(path, text_field),
        "npz": lambda: read_npz(path),
        "safetensors": lambda: read_safetensors(path),
        "idx": lambda: read_idx(os.path.expanduser(path)),
    }
    if kind not in readers or not path:
        raise UserError(
            f"--from={shown(source)} is not of the form KIND:PATH with KIND one of"
            f" {', '.join(readers)}"
        )
    try:
        return readers[kind]()
    except MemoryError as e:
        raise UserError(f"--from={shown(source)} does not fit into memory: split it up") from e
