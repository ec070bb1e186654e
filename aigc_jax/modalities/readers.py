"""Readers of people's own files: image folders, text, JSONL, CoNLL, npz, safetensors and IDX.

Each reader checks what it reads; a file that it cannot take is named in a `UserError`.
"""

import os
from collections.abc import Callable

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.raw_dataset import Example, RawDataset
from aigc_jax.modalities.image.array_files import read_idx, read_npz, read_safetensors
from aigc_jax.modalities.image.image_folder import read_folder
from aigc_jax.modalities.text.conll import read_conll
from aigc_jax.modalities.text.messages import read_messages
from aigc_jax.modalities.text.text_files import read_jsonl, read_text

__all__ = ["KINDS", "Example", "RawDataset", "read"]

KINDS = ("folder", "text", "jsonl", "messages", "conll", "npz", "safetensors", "idx")


def read(
    source: str,
    *,
    image_size: int = 0,
    text_field: str = "text",
    label_field: str = "label",
    option: str = "--from",
) -> RawDataset:
    """What `KIND:PATH` names.

    Args:
      source: one of `KINDS`, a colon and a path.
      image_size: resize and centre-crop images of a folder; 0: leave them.
      text_field: the field of a JSONL record that holds its text.
      label_field: the field that holds its class.
      option: where the person wrote the source, for messages.

    Raises:
      UserError: for an unknown kind, or files that cannot be taken or held in memory.
    """
    kind, _, path = source.partition(":")
    readers: dict[str, Callable[[], RawDataset]] = {
        "folder": lambda: read_folder(os.path.expanduser(path), image_size),
        "text": lambda: read_text(path),
        "jsonl": lambda: read_jsonl(path, text_field, label_field),
        "messages": lambda: read_messages(path),
        "conll": lambda: read_conll(path),
        "npz": lambda: read_npz(path),
        "safetensors": lambda: read_safetensors(path),
        "idx": lambda: read_idx(os.path.expanduser(path)),
    }
    if kind not in readers or not path:
        raise UserError(
            f"{option}={shorten(source)} is not of the form KIND:PATH with KIND one of"
            f" {', '.join(KINDS)}"
        )
    try:
        return readers[kind]()
    except MemoryError as e:
        raise UserError(f"{option}={shorten(source)} does not fit into memory: split it up") from e
