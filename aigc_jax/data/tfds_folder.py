"""Data sets in TFDS form from folders that may come from anywhere.

TFDS trusts a folder: its features.json names Python classes, which TFDS imports, and its
dataset_info.json says where the records lie and how many there are. Both are checked here before
TFDS reads them, and records are decoded only as far as they are used.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import file_size, is_remote, open_file
from aigc_jax.data.array_record_reader import Shards
from aigc_jax.modalities.image.image_files import decode_image

NAME = re.compile(
    r"(?P<name>[a-z]\w*)(/(?P<config>[\w+-][\w+.-]*))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?",
    re.ASCII | re.IGNORECASE,
)
CONFIG = re.compile(r"[\w+-][\w+.-]*", re.ASCII)
VERSION = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}", re.ASCII)
# A shard's file name; in TFDS's own, `{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}`.
TEMPLATE = re.compile(r"([\w@.-]|\{[A-Z_]+\})+(/([\w@.-]|\{[A-Z_]+\})+)*", re.ASCII)
MAX_JSON = 1 << 24  # bytes of a description
MAX_CLASSES = 1_000_000
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for images of so many channels


def check_name(name: str) -> None:
    """Raises UserError unless `name` is NAME, NAME/CONFIG, NAME:VERSION or both."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"data.source=tfds:{shorten(name)} names no data set: write tfds:NAME,"
            " tfds:NAME/CONFIG,"
            " tfds:NAME:1.0.0 or tfds:NAME/CONFIG:1.0.0, of letters, digits and underscores"
        )


def find_folder(name: str, data_dir: str) -> str:
    """The folder `data_dir/NAME[/CONFIG]/VERSION` that `name` stands for; the newest version.

    Raises:
      ValueError: if there is none, or NAME has configs and `name` does not say which.
    """
    match = NAME.fullmatch(name)
    folder = os.path.join(data_dir, match["name"])
    config = match["config"] or ("" if _versions(folder) else _only_config(folder))
    folder = os.path.join(folder, config) if config else folder
    wanted = (match["version"] or "*.*.*").split(".")
    for version in _versions(folder):
        if all(w in ("*", v) for w, v in zip(wanted, version.split("."), strict=True)):
            return os.path.join(folder, version)
    raise ValueError(f"{shorten(folder)} has no version {'.'.join(wanted)}")


def folders(folder: str) -> list[str]:
    """The names of the folders in a folder."""
    return [d.name for d in epath.Path(folder).iterdir() if d.is_dir()]


def _versions(folder: str) -> list[str]:
    """The versions in the folder, newest first."""
    found = [name for name in folders(folder) if VERSION.fullmatch(name)]
    return sorted(found, key=lambda v: [int(n) for n in v.split(".")], reverse=True)


def _only_config(folder: str) -> str:
    """The default config that TFDS has noted, or the only one there is."""
    noted = os.path.join(folder, ".config", "metadata.json")
    there = epath.Path(noted).exists()
    default = _read_json(noted).get("default_config_name") if there else None
    found = [name for name in folders(folder) if CONFIG.fullmatch(name)]
    if default in found or len(found) == 1:
        return default if default in found else found[0]
    raise ValueError(
        f"it has the configs {shorten(', '.join(sorted(found)) or 'none', 200)}: name one"
    )


def _read_json(path: str) -> dict[str, Any]:
    value = json.loads(_bytes(path).decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{os.path.basename(path)} holds no object")
    return value


def _bytes(path: str) -> bytes:
    """What a description says; ValueError if it is too long to be one."""
    if is_remote(path):
        remote = epath.Path(path)
        size, data = remote.stat().length, b""
        if size <= MAX_JSON:
            data = remote.read_bytes()
    else:
        with open_file(path) as f:
            size, data = file_size(f), f.read(MAX_JSON)
    if size > MAX_JSON:
        raise ValueError(f"{os.path.basename(path)} is too large")
    return data


def check_folder(folder: str) -> None:
    """Looks at a data set's descriptions before TFDS does.

    Raises:
      ValueError: if they name code to import, or files outside the folder.
    """
    _check_features(_read_json(os.path.join(folder, "features.json")), _feature_classes())
    info = _read_json(os.path.join(folder, "dataset_info.json"))
    formats = [info.get("fileFormat"), *_list(info.get("alternativeFileFormats"))]
    if "array_record" not in formats:
        raise ValueError(f"its form is {shorten(info.get('fileFormat', 'tfrecord'), 40)}")
    splits = _list(info.get("splits"))
    for what in [info.get("name"), *(isinstance(s, dict) and s.get("name") for s in splits)]:
        if not isinstance(what, str) or not CONFIG.fullmatch(what):
            raise ValueError(f"its dataset_info.json has the name {shorten(what, 80)}")
    for split in splits:
        template = split.get("filepathTemplate", "")
        if not isinstance(template, str) or (template and not TEMPLATE.fullmatch(template)):
            raise ValueError(f"its files are named {shorten(template, 80)}")
        if {".", ".."} & set(template.split("/")):
            raise ValueError(f"its files lie outside: {shorten(template, 80)}")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _feature_classes() -> set[str]:
    """The names of TFDS's own feature classes, as features.json writes them."""
    import tensorflow_datasets as tfds

    base = tfds.features.FeatureConnector
    known = [c for c in vars(tfds.features).values() if isinstance(c, type) and issubclass(c, base)]
    names = {f"{c.__module__}.{c.__name__}" for c in known}
    return names | {alias for c in known for alias in c.ALIASES}


def _check_features(value: Any, known: set[str]) -> None:
    """Raises ValueError if features.json, at any depth, names a class that is not TFDS's own."""
    for item in value if isinstance(value, list) else []:
        _check_features(item, known)
    for key, item in value.items() if isinstance(value, dict) else []:
        if key in ("pythonClassName", "python_class_name", "type") and isinstance(item, str):
            if item not in known:
                raise ValueError(f"its features.json names the class {shorten(item, 120)}")
        elif key == "json" and isinstance(item, str):  # TFDS reads it as JSON once more
            _check_features(json.loads(item), known)
        else:
            _check_features(item, known)


class Records:
    """The examples of a split, of which only some features are decoded.

    Args:
      builder: TFDS's view of the data set.
      split: the split's name.
      used: the features to decode.
      where: the data set, for messages.
      window: how many records are shuffled at a time; see `order.Windowed`.

    Attributes:
      ends: the number of records up to each file's end.

    Raises:
      ValueError: if the files do not hold what the description says.
    """

    def __init__(self, builder: Any, split: str, used: Sequence[str], where: str, window: int):
        import tensorflow_datasets as tfds

        info = builder.info.splits[split]
        paths = [os.fspath(path) for path in info.filepaths]
        lengths = list(info.shard_lengths)
        if min(lengths) < 0 or len(paths) != len(lengths):
            raise ValueError(f"its files hold {shorten(lengths, 80)} records")
        self._raw = Shards(paths, lengths, 2 * window)
        self._raw.check()
        self._where = where
        features = builder.info.features
        used = {key: features[key] for key in used if key in features}
        self._features = tfds.features.FeaturesDict(used)
        if '"zlib"' in json.dumps(self._features.to_json()):
            raise ValueError("its tensors are compressed by zlib, and could unpack to any size")
        image = used.get("image")
        self._encoded = isinstance(image, tfds.features.Image)
        self._decoders = {"image": tfds.decode.SkipDecoding()} if self._encoded else None
        self._shape = tuple(image.shape) if image is not None else ()
        self._classes = getattr(used.get("label"), "num_classes", 0) or 0

    @property
    def ends(self) -> np.ndarray:
        return self._raw.ends

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example.

        Raises:
          UserError: if it is damaged, or not what the description says.
        """
        try:
            record = self._features.deserialize_example_np(
                self._raw[index], decoders=self._decoders
            )
            if self._encoded:
                record["image"] = _decode(record["image"], self._shape)
            if self._classes and not 0 <= record["label"] < self._classes:
                raise ValueError(f"its label {record['label']} is none of {self._classes} classes")
            return record
        except Exception as e:  # TFDS, protobuf and array_record raise all kinds
            raise UserError(
                f"record {index} of {self._where} cannot be read ({one_line(e)}): make the data set"
                " again"
            ) from e

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


def _decode(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of an encoded image, whose header is compared with `shape` first."""
    image = decode_image(io.BytesIO(data), "it", size=(shape[1], shape[0]))
    return np.asarray(image.convert(MODES[shape[2]]), np.uint8).reshape(shape)


def check_images(features: Any, where: str) -> None:
    """Raises UserError unless the images are uint8 of one shape."""
    shape, dtype = features["image"].shape, np.dtype(features["image"].np_dtype)
    whole = len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    if not whole or dtype != np.uint8 or shape[2] not in MODES:
        raise UserError(
            f"the images of {where} must be uint8 of one shape (height, width, colours), but they"
            f" are {dtype} {shorten(shape, 80)}: prepare them with aigc prepare --image_size=N"
        )


def check_classes(features: Any, where: str) -> None:
    """Raises UserError if there are more classes than there can be."""
    classes = (getattr(features["label"], "num_classes", 0) if "label" in features else 0) or 0
    if classes > MAX_CLASSES:  # TFDS would make a name for each
        raise UserError(f"{where} claims {classes} classes, which is too much")
