"""Registries of readers of files, readers of Python data, and data-set builders.

`modalities/NAME/readers.py` of every folder registers its own; see `import_readers`.
"""

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from aigc_jax.core.config import Data
from aigc_jax.core.modality import Spec
from aigc_jax.core.registry import Registry
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import RawDataset

PACKAGE = "aigc_jax.modalities"


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """Options of readers; each uses those that apply to it.

    Attributes:
      image_size: side in pixels to which images are resized and centre-cropped; 0 disables.
      text_field: field of the text in a JSONL record.
      label_field: field of its class.
    """

    image_size: int = 0
    text_field: str = "text"
    label_field: str = "label"


Columns = dict[str, Any]  # a sequence or array per field
Reader = Callable[[str, ReaderOptions], RawDataset]  # takes the path of `KIND:PATH`
# (raw examples, config, tokenizer or None, spec of a model to be evaluated or None) → data set.
# The tokenizer is untyped here: its type belongs to the modality text.
DatasetBuilder = Callable[[RawDataset, Data, Any, Spec | None], Dataset]


@dataclasses.dataclass(frozen=True)
class FieldReader:
    """Converts columns from Python that have a certain field.

    Attributes:
      read: maps (columns of each split, class names or ()) to raw examples.
      required: further required fields.
      optional: further optional fields.
    """

    read: Callable[[Mapping[str, Columns], tuple[str, ...]], RawDataset]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


READERS: Registry[Reader] = Registry("reader", "data.source")
FIELD_READERS: Registry[FieldReader] = Registry("field_reader", "data")
DATASET_BUILDERS: Registry[DatasetBuilder] = Registry("dataset_builder", "RawDataset.kind")


def import_readers() -> None:
    """Imports the module `readers` of every modality, which registers its readers."""
    for folder in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__):
        module = f"{PACKAGE}.{folder.name}.readers"
        if folder.ispkg and importlib.util.find_spec(module):
            importlib.import_module(module)
