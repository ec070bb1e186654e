"""Readers of people's own files: image folders, text, JSONL, CoNLL, npz, safetensors and IDX.

Each reader checks what it reads; a file that it cannot take is named in a `UserError`. A reader of
another package is registered in `READERS` under the KIND of `KIND:PATH`.
"""

import dataclasses
import os
from collections.abc import Callable

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.registry import Registry
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.modalities.image.array_files import read_idx, read_npz, read_safetensors
from aigc_jax.modalities.image.image_folder import read_folder
from aigc_jax.modalities.text.conll import read_conll
from aigc_jax.modalities.text.messages import read_messages
from aigc_jax.modalities.text.text_files import read_jsonl, read_text


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """Options of readers; each uses those that concern it.

    Attributes:
      image_size: resize and centre-crop images to this many pixels a side; 0: leave them.
      text_field: the field of a JSONL record that has its text.
      label_field: the field that has its class.
    """

    image_size: int = 0
    text_field: str = "text"
    label_field: str = "label"


Reader = Callable[[str, ReaderOptions], RawDataset]

READERS: Registry[Reader] = Registry(
    "reader",
    "data.source",
    {
        "folder": lambda path, options: read_folder(os.path.expanduser(path), options.image_size),
        "text": lambda path, _: read_text(path),
        "jsonl": lambda path, options: read_jsonl(path, options.text_field, options.label_field),
        "messages": lambda path, _: read_messages(path),
        "conll": lambda path, _: read_conll(path),
        "npz": lambda path, _: read_npz(path),
        "safetensors": lambda path, _: read_safetensors(path),
        "idx": lambda path, _: read_idx(os.path.expanduser(path)),
    },
)


def read(
    source: str,
    *,
    image_size: int = 0,
    text_field: str = "text",
    label_field: str = "label",
    option: str = "--from",
) -> RawDataset:
    """Reads what `KIND:PATH` names.

    Args:
      source: a name in `READERS`, a colon and a path.
      image_size, text_field, label_field: as in `ReaderOptions`.
      option: the flag or field that has the source, for messages.

    Raises:
      UserError: for an unknown kind, or files that cannot be read or held in memory.
    """
    kind, _, path = source.partition(":")
    if kind not in READERS.names() or not path:
        raise UserError(
            f"{option}={shorten(source)} is not of the form KIND:PATH with KIND one of"
            f" {', '.join(READERS.names())}"
        )
    try:
        return READERS[kind](path, ReaderOptions(image_size, text_field, label_field))
    except MemoryError as e:
        raise UserError(f"{option}={shorten(source)} does not fit into memory: split it up") from e
