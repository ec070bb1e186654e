"""Writes user data as a TFDS data set in ArrayRecord files, without TensorFlow."""

import contextlib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import is_remote
from aigc_jax.data.raw_dataset import Example, RawDataset
from aigc_jax.modalities import readers
from aigc_jax.modalities.image.image_folder import UNKEPT

NAME = r"[a-z][a-z0-9_]{0,99}"  # file names contain it, and their length is limited


def prepare(
    source: str,
    name: str,
    data_dir: str,
    *,
    image_size: int = 0,
    text_field: str = "text",
    label_field: str = "label",
) -> str:
    """Writes the data set and returns its folder.

    Every file is checked before the first record is written.

    Args:
      source: `folder:DIR`, `text:GLOB`, `jsonl:FILE`, `messages:FILE`, `conll:FILE` or `:DIR`,
        `npz:FILE`, `safetensors:FILE` or `idx:DIR`.
      name: name of the new data set: lower-case letters, digits and underscores.
      data_dir: the folder of data sets.
      image_size: resizes and centre-crops images of a folder to this size in pixels; 0 disables.
      text_field: field of the text in a JSONL record.
      label_field: field of its class, used if all records have one.

    Raises:
      UserError: if the source cannot be read, or the data set exists already.
    """
    if not re.fullmatch(NAME, name) or name == "downloads":
        raise UserError(
            f"--name={shorten(name)}: use at most 100 lower-case letters, digits and underscores, a"
            " letter first, and not 'downloads', which TFDS reserves"
        )
    if is_remote(data_dir):
        raise UserError(
            f"--data_dir={shorten(data_dir)} is an object store: write to a folder of this machine,"
            " then copy it there"
        )
    folder, where = os.path.abspath(os.path.expanduser(data_dir)), shorten(data_dir)
    if os.path.lexists(os.path.join(folder, name)):
        raise UserError(
            f"{shorten(os.path.join(data_dir, name))} exists already: choose another --name or"
            " remove it"
        )
    content = readers.read_files(
        source, image_size=image_size, text_field=text_field, label_field=label_field
    )
    _check_names(content.class_names)
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as e:  # ValueError: a NUL, or not Unicode
        raise UserError(f"--data_dir={where} cannot be written: {one_line(e)}") from e
    try:
        return _write(content, name, folder, source)
    except OSError as e:
        raise UserError(
            f"{shorten(os.path.join(folder, name))} cannot be written: {one_line(e)}"
        ) from e


def _check_names(names: Sequence[str]) -> None:
    """Raises UserError for a class name that TFDS, which stores names as lines, would alter."""
    for name in names:
        if name != name.strip() or any(unicodedata.category(c) in UNKEPT for c in name):
            raise UserError(
                f"the class '{shorten(name, 80)}' has an invalid name: rename it,"
                " without leading or trailing spaces and line ends"
            )


def _features(content: RawDataset) -> dict[str, Any]:
    """Returns TFDS features that can be written without TensorFlow."""
    import tensorflow_datasets as tfds

    features: dict[str, Any] = {}
    if content.kind == "image":
        # Raw pixels: encoding TFDS's image feature needs TensorFlow.
        features["image"] = tfds.features.Tensor(shape=content.image_shape, dtype=np.uint8)
    elif content.kind == "words":
        features = dict(words=tfds.features.Text(), tags=tfds.features.Text())
    else:
        features[content.kind] = tfds.features.Text()
    if content.class_names:
        features["label"] = tfds.features.ClassLabel(names=content.class_names)
    return features


def _plain(example: Example) -> dict[str, Any]:
    """Encodes lists of the example as JSON: writing TFDS's sequences needs TensorFlow."""
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, tuple)) else value
        for key, value in example.items()
    }


def _write(content: RawDataset, name: str, folder: str, source: str) -> str:
    import tensorflow_datasets as tfds

    features = _features(content)

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"Prepared by aigc from {source.partition(':')[0]} files.",
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            del dl_manager
            return {split: self._generate_examples(split) for split in content.splits}

        def _generate_examples(self, split: str) -> Iterator:
            examples = content.splits[split]
            for i, example in enumerate(tqdm(examples, desc=f"{name} {split}", unit=" examples")):
                yield i, _plain(example())

    Prepared.name = name
    tfds.disable_progress_bar()
    builder = Prepared(data_dir=folder, file_format="array_record")
    skip = tfds.download.ComputeStatsMode.SKIP
    # Suppresses TFDS's message about a download; there is a progress bar above.
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(compute_stats=skip)
            )
    except BaseException:  # also Ctrl-C: a partial data set must not block the next attempt
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        raise
    return str(builder.data_path)
