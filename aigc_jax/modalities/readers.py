"""Reads user files: image folders, text, JSONL, CoNLL, npz, safetensors and IDX.

Each reader validates its input; a `UserError` names an invalid file. A reader of another package is
registered in `READERS` under the KIND of `KIND:PATH`.
"""

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.modalities.registries import READERS, ReaderOptions, import_readers

import_readers()


def read_files(
    source: str,
    *,
    image_size: int = 0,
    text_field: str = "text",
    label_field: str = "label",
    option: str = "--from",
) -> RawDataset:
    """Reads the examples of `KIND:PATH`.

    Args:
      source: a name in `READERS`, a colon and a path.
      image_size, text_field, label_field: as in `ReaderOptions`.
      option: the flag or field of the source, for messages.

    Raises:
      UserError: for an unknown kind, or files that cannot be read or do not fit into memory.
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
