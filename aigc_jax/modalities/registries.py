"""What modalities register to bring in data: readers of files, of Python values, and builders.

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
    """Options of readers; each uses those that concern it.

    Attributes:
      image_size: resize and centre-crop images to this many pixels a side; 0: leave them.
      text_field: the field of a JSONL record that has its text.
      label_field: the field that has its class.
    """

    image_size: int = 0
    text_field: str = "text"
    label_field: str = "label"


Columns = dict[str, Any]  # a sequence or array per field
Reader = Callable[[str, ReaderOptions], RawDataset]  # of the path in `KIND:PATH`
# (raw examples, config, tokenizer to use, spec of a model that is evaluated on them) → data set;
# the last two may be None. The tokenizer is untyped here: only text knows its type.
DatasetBuilder = Callable[[RawDataset, Data, Any, Spec | None], Dataset]


@dataclasses.dataclass(frozen=True)
class FieldReader:
    """Converts columns given from Python that have a certain field.

    Attributes:
      read: (columns of each split, class names or ()) → raw examples.
      required: other fields that must be there.
      optional: other fields that are used.
    """

    read: Callable[[Mapping[str, Columns], tuple[str, ...]], RawDataset]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


READERS: Registry[Reader] = Registry("reader", "data.source")
FIELD_READERS: Registry[FieldReader] = Registry("field_reader", "data")
DATASET_BUILDERS: Registry[DatasetBuilder] = Registry("dataset_builder", "RawDataset.kind")


def import_readers() -> None:
    """Imports the module `readers` of every modality's folder, which registers its own."""
    for folder in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__):
        module = f"{PACKAGE}.{folder.name}.readers"
        if folder.ispkg and importlib.util.find_spec(module):
            importlib.import_module(module)
