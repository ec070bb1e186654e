"""Finds and validates folders of TFDS data sets from untrusted sources.

TFDS trusts a folder: its features.json names Python classes, which TFDS imports, and its
dataset_info.json the files of records and their lengths. Both are checked here before TFDS reads
them.
"""

import json
import os
import re
from typing import Any

from etils import epath

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.files import file_size, is_remote, open_file

NAME = re.compile(
    r"(?P<name>[a-z]\w*)(/(?P<config>[\w+-][\w+.-]*))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?",
    re.ASCII | re.IGNORECASE,
)
CONFIG = re.compile(r"[\w+-][\w+.-]*", re.ASCII)
VERSION = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}", re.ASCII)
# A shard's file name; in TFDS's own, `{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}`.
TEMPLATE = re.compile(r"([\w@.-]|\{[A-Z_]+\})+(/([\w@.-]|\{[A-Z_]+\})+)*", re.ASCII)
MAX_JSON = 1 << 24  # maximum bytes of a JSON description
MAX_CLASSES = 1_000_000


def check_name(name: str) -> None:
    """Raises UserError unless `name` is NAME, NAME/CONFIG, NAME:VERSION or both."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"data.source=tfds:{shorten(name)} is not the name of a data set: write tfds:NAME,"
            " tfds:NAME/CONFIG, tfds:NAME:1.0.0 or tfds:NAME/CONFIG:1.0.0, with letters, digits"
            " and underscores"
        )


def find_folder(name: str, data_dir: str) -> str:
    """Finds a data set's folder `data_dir/NAME[/CONFIG]/VERSION`, by default of the newest version.

    Raises:
      ValueError: if there is no such folder, or NAME has several configs and none is given.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{shorten(name)} is not the name of a data set")
    folder = os.path.join(data_dir, match["name"])
    config = match["config"] or ("" if _versions(folder) else _only_config(folder))
    folder = os.path.join(folder, config) if config else folder
    wanted = (match["version"] or "*.*.*").split(".")
    for version in _versions(folder):
        if all(w in ("*", v) for w, v in zip(wanted, version.split("."), strict=True)):
            return os.path.join(folder, version)
    raise ValueError(f"{shorten(folder)} has no version {'.'.join(wanted)}")


def folders(folder: str) -> list[str]:
    """Returns the names of the subfolders."""
    return [d.name for d in epath.Path(folder).iterdir() if d.is_dir()]


def _versions(folder: str) -> list[str]:
    """Returns the versions in the folder, newest first."""
    found = [name for name in folders(folder) if VERSION.fullmatch(name)]
    return sorted(found, key=lambda v: [int(n) for n in v.split(".")], reverse=True)


def _only_config(folder: str) -> str:
    """Returns the default config in TFDS's metadata, or the only config."""
    metadata = os.path.join(folder, ".config", "metadata.json")
    exists = epath.Path(metadata).exists()
    default = _read_json(metadata).get("default_config_name") if exists else None
    found = [name for name in folders(folder) if CONFIG.fullmatch(name)]
    if default in found or len(found) == 1:
        return default if default in found else found[0]
    raise ValueError(
        f"it has the configs {shorten(', '.join(sorted(found)) or 'none', 200)}: name one"
    )


def _read_json(path: str) -> dict[str, Any]:
    value = json.loads(_bytes(path).decode("utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{os.path.basename(path)} is not a JSON object")
    return value


def _bytes(path: str) -> bytes:
    """Reads a JSON description; ValueError if it is too long for one."""
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
    """Checks a data set's descriptions before TFDS reads them.

    Raises:
      ValueError: if they name code to import, or files outside the folder.
    """
    _check_features(_read_json(os.path.join(folder, "features.json")), _feature_classes())
    info = _read_json(os.path.join(folder, "dataset_info.json"))
    formats = [info.get("fileFormat"), *_list(info.get("alternativeFileFormats"))]
    if "array_record" not in formats:
        raise ValueError(f"its file format is {shorten(info.get('fileFormat', 'tfrecord'), 40)}")
    splits = _list(info.get("splits"))
    for what in [info.get("name"), *(isinstance(s, dict) and s.get("name") for s in splits)]:
        if not isinstance(what, str) or not CONFIG.fullmatch(what):
            raise ValueError(f"its dataset_info.json has the name {shorten(what, 80)}")
    for split in splits:
        template = split.get("filepathTemplate", "")
        if not isinstance(template, str) or (template and not TEMPLATE.fullmatch(template)):
            raise ValueError(f"its files are named {shorten(template, 80)}")
        if {".", ".."} & set(template.split("/")):
            raise ValueError(f"its files are outside the folder: {shorten(template, 80)}")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _feature_classes() -> set[str]:
    """Returns the names of TFDS's feature classes, as in features.json."""
    import tensorflow_datasets as tfds

    base = tfds.features.FeatureConnector
    known: list[Any] = [
        c for c in vars(tfds.features).values() if isinstance(c, type) and issubclass(c, base)
    ]
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
        elif key == "json" and isinstance(item, str):  # which TFDS parses as JSON again
            _check_features(json.loads(item), known)
        else:
            _check_features(item, known)


def check_classes(features: Any, where: str) -> None:
    """Raises UserError if the description claims an absurd number of classes."""
    classes = (getattr(features["label"], "num_classes", 0) if "label" in features else 0) or 0
    if classes > MAX_CLASSES:  # TFDS would make a name for each
        raise UserError(f"{where} claims {classes} classes: at most {MAX_CLASSES} are possible")
