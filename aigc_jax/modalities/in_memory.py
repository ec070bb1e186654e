"""Data passed from Python: arrays, lists, generators, Hugging Face data sets and data frames.

pandas and `datasets` are not imported: their objects are recognised by protocol.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.modalities.dataset_builders import build_dataset
from aigc_jax.modalities.registries import FIELD_READERS, Columns
from aigc_jax.modalities.text.tokenizers import Tokenizer

IN_MEMORY = "in_memory"  # `data.source` of a run whose data were passed from Python
SPLITS = ("train", "validation", "test")
PLURALS = {"images": "image", "labels": "label", "texts": "text"}
FINGERPRINTED = 64  # examples of each split that the fingerprint reads


@runtime_checkable
class ColumnarTable(Protocol):
    """Named columns of known length, as a Hugging Face `datasets.Dataset` has."""

    column_names: Any

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


@runtime_checkable
class DataFrame(Protocol):
    """A table with `to_dict`, as a pandas `DataFrame` is."""

    columns: Any

    def to_dict(self, orient: str) -> dict[Any, Any]: ...


def dataset_from_python(data: Any, config: Data, tokenizer: Tokenizer | None = None) -> Dataset:
    """Builds a data set from Python objects.

    Args:
      data: as for `raw_dataset_from_python`.
      config: the section `data`; `source` and fields about files are ignored.
      tokenizer: replaces that of `config.tokenizer`.

    Returns:
      The data set, with its fingerprint.

    Raises:
      UserError: if the data are invalid; it names the field.
    """
    raw = raw_dataset_from_python(data)
    dataset = build_dataset(raw, dataclasses.replace(config, source=IN_MEMORY), tokenizer)
    return dataclasses.replace(dataset, fingerprint=data_fingerprint(raw))


def raw_dataset_from_python(data: Any) -> RawDataset:
    """Converts Python objects to raw examples.

    Args:
      data: one of
        - a mapping of fields to arrays or lists: `{"image": (N, H, W, C) uint8, "label": (N,)}`,
          `{"text": […], "label": […]}`, `{"messages": […]}`, `{"words": […], "tags": […]}`; an
          array alone is images;
        - a list or any other iterable, which is read once and kept in memory: of texts, of
          conversations (lists of `{"role": …, "content": …}`), or of such fields as dicts;
        - a Hugging Face `Dataset`, or a pandas `DataFrame`, with such columns;
        - several of these: a pair (training, held-out), or a mapping of splits "train",
          "validation" and "test", such as a `DatasetDict`;
        - a `RawDataset`.
        Other fields are ignored. Labels are integers or texts.

    Raises:
      UserError: if they are invalid; it names the field.
    """
    if isinstance(data, RawDataset):
        return data
    parts = _splits(data)
    class_names = _class_names(parts["train"])
    splits = {split: _columns(part, f"data['{split}']") for split, part in parts.items()}
    fields = set(splits["train"])
    for split, columns in splits.items():
        missing = fields - set(columns) - {"label"}
        if missing:
            raise UserError(f"data['{split}'] has no field '{min(missing)}', but data['train'] has")
    for name, reader in FIELD_READERS.items():
        if {name, *reader.required} <= fields:
            return reader.read(splits, class_names)
    raise UserError(
        f"data has the fields {shorten(sorted(fields), 200)}: name them image and label, text and"
        " label, messages, or words and tags"
    )


def data_fingerprint(raw: RawDataset) -> str:
    """Returns a hash of lengths, classes and some examples of all splits, to identify data.

    It reads 64 examples of each split, hence does not detect every change.
    """
    found = hashlib.sha256(repr((raw.kind, raw.image_shape, raw.class_names)).encode())
    for split, examples in sorted(raw.splits.items()):
        found.update(f"{split} {len(examples)}\n".encode())
        for i in np.unique(np.linspace(0, len(examples) - 1, FINGERPRINTED).astype(int)):
            for key, value in sorted(examples[int(i)]().items()):
                found.update(key.encode())
                plain = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
                found.update(plain)
    return found.hexdigest()[:32]


def check_fingerprint(saved: str, dataset: Dataset) -> None:
    """Raises UserError if a run is resumed with other data than it was started with.

    Args:
      saved: fingerprint of the data that it was started with; "" if unknown.
      dataset: the present data.
    """
    if saved and dataset.fingerprint and saved != dataset.fingerprint:
        raise UserError(
            "data= is not the data that this run was trained on: pass the same data, or another"
            " workdir"
        )


def no_data_given(argument: str, config: Data) -> RawDataset:
    """Data source of runs whose data were passed from Python: raises if they are missing.

    Raises:
      UserError: always.
    """
    del argument, config
    raise UserError(
        "data.source=in_memory: the data of this run were passed from Python: pass data= again, or"
        " set data.source to evaluate on other data"
    )


def _splits(data: Any) -> dict[str, Any]:
    if isinstance(data, tuple) and len(data) == 2:
        return {"train": data[0]} | ({} if data[1] is None else {"validation": data[1]})
    if isinstance(data, Mapping) and set(data) & set(SPLITS):
        unknown = set(data) - set(SPLITS)
        if unknown or "train" not in data:
            raise UserError(
                f"data has the splits {shorten(sorted(map(str, data)), 200)}: they must be train"
                " and, if held out, validation or test"
            )
        return dict(data)
    return {"train": data}


def _columns(data: Any, where: str) -> Columns:
    """Returns the known fields of one split, sequences of the same positive length."""
    if isinstance(data, np.ndarray) and data.ndim > 2:
        found = {"image": data}
    elif isinstance(data, Mapping):
        found = dict(data)
    elif isinstance(data, DataFrame):
        found = data.to_dict("list")
    elif isinstance(data, ColumnarTable) and data.column_names:
        found = {name: data[name][:] for name in data.column_names if _field(name) in _fields()}
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        found = _from_items(list(data), where)
    else:
        raise UserError(
            f"{where} is {shorten(type(data).__name__, 80)}: pass a dict of arrays, a list, a"
            " generator, a Hugging Face Dataset or a DataFrame"
        )
    known = {_field(name): values for name, values in found.items() if _field(name) in _fields()}
    if not known:
        raise UserError(
            f"{where} has the fields {shorten(list(found), 200)}: one of image, text, messages or"
            " words is needed"
        )
    lengths = {name: len(values) for name, values in known.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"the fields of {where} differ in length: {shorten(lengths, 200)}")
    if not min(lengths.values()):
        raise UserError(f"{where} is empty")
    return known


def _fields() -> set[str]:
    """Returns all fields that some modality uses."""
    return {
        field
        for name, reader in FIELD_READERS.items()
        for field in (name, *reader.required, *reader.optional)
    }


def _field(name: Any) -> str:
    return PLURALS.get(str(name), str(name))


def _from_items(items: list[Any], where: str) -> Columns:
    """Converts a list of texts, conversations or dicts to columns."""
    if not items:
        raise UserError(f"{where} is empty")
    first = items[0]
    if isinstance(first, str):
        return {"text": items}
    if isinstance(first, Mapping) and "role" in first:
        raise UserError(
            f"{where} is a list of messages: pass a list of conversations, each a list of messages"
        )
    if isinstance(first, Mapping):
        columns: Columns = {str(name): [] for name in first}
        for number, item in enumerate(items):
            for name, values in columns.items():
                if not isinstance(item, Mapping) or name not in item:
                    raise UserError(f"item {number} of {where} has no field '{shorten(name, 80)}'")
                values.append(item[name])
        return columns
    if isinstance(first, Sequence):
        return {"messages": items}
    raise UserError(
        f"item 0 of {where} is {shorten(type(first).__name__, 80)}: it must be a text, a dict of"
        " fields or a list of messages"
    )


def _class_names(train: Any) -> tuple[str, ...]:
    """Returns the class names of a Hugging Face data set's field "label"; () for other data."""
    features = getattr(train, "features", None)
    label = features.get("label") if isinstance(features, Mapping) else None
    return tuple(getattr(label, "names", None) or ())
