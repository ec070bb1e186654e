"""Reads arrays of images: npz, safetensors and IDX files."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, cast

import numpy as np

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file
from aigc_jax.core.npz_file import read_npz_file
from aigc_jax.core.safetensors_file import read_safetensors_file
from aigc_jax.data.raw_dataset import ColumnarExamples, RawDataset

MAX_DEFLATE = 1032  # maximum compression ratio of gzip


def read_npz(path: str) -> RawDataset:
    """Reads images, and labels if present, from an npz file.

    Keys: `images` and `labels`, or per split `x_train`, `y_train`, `x_test`, `y_test` (Keras), or
    `train_images`, `train_labels`, … (MedMNIST).
    """
    return _named_content(read_npz_file(path), path)


def read_safetensors(path: str) -> RawDataset:
    """Reads the same arrays as `read_npz` from a safetensors file."""
    return _named_content(read_safetensors_file(path), path)


def _named_content(archive: dict[str, np.ndarray], path: str) -> RawDataset:
    splits: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        for x, y in ((f"x_{short}", f"y_{short}"), (f"{short}_images", f"{short}_labels")):
            if x in archive:
                splits[split] = (archive[x], archive.get(y))
    for x, y in (("images", "labels"), ("x", "y"), ("image", "label")):
        if x in archive and not splits:
            splits["train"] = (archive[x], archive.get(y))
    if "train" not in splits:
        raise UserError(
            f"{shorten(path)} has the arrays {shorten(', '.join(archive), 200) or 'none'}: rename"
            " them to images and labels, or x_train, y_train, x_test, y_test"
        )
    return array_dataset(splits, shorten(path))


def read_idx(path: str) -> RawDataset:
    """Reads a folder with MNIST's four IDX files, gzipped or not."""
    splits = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _idx_file(path, f"{stem}-images-idx3-ubyte", required=split == "train")
        labels = _idx_file(path, f"{stem}-labels-idx1-ubyte", required=False)
        if images:
            splits[split] = (read_idx_file(images, 3), read_idx_file(labels, 1) if labels else None)
    return array_dataset(splits, shorten(path))


def _idx_file(folder: str, name: str, required: bool) -> str | None:
    for stem in (name, name.replace("-idx", ".idx")):
        for candidate in (stem, f"{stem}.gz"):
            if os.path.isfile(os.path.join(folder, candidate)):
                return os.path.join(folder, candidate)
    if required:
        raise UserError(f"there is no {name}(.gz) in {shorten(folder)}")
    return None


def read_idx_file(path: str, dims: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes: magic 0 0 8 dims, big-endian sizes, then the data."""
    where = shorten(path)
    with open_file(path) as raw:
        zipped = path.endswith(".gz")
        f: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw
        most = file_size(raw) * (MAX_DEFLATE if zipped else 1)
        try:
            header = f.read(4 + 4 * dims)
            if header[:4] != bytes([0, 0, 8, dims]) or len(header) != 4 + 4 * dims:
                raise UserError(f"{where} is not an IDX file of {dims}-dimensional bytes")
            shape = struct.unpack(f">{dims}I", header[4:])
            size = math.prod(shape)
            claim = f"{where} is damaged: its header claims {'×'.join(map(str, shape))} bytes, but"
            if not size:  # numpy rejects shapes like 0 × 2³¹ × 2³²
                raise UserError(f"{where} is empty: its header claims {'×'.join(map(str, shape))}")
            if size > most:
                raise UserError(f"{claim} the file cannot hold more than {most}")
            check_memory(size, where)
            data = read_at_most(f, size + 1)
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"{where} is damaged ({one_line(e)})") from e
    if len(data) != size:
        raise UserError(f"{claim} {'more' if len(data) > size else len(data)} follow")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_at_most(f: IO[bytes], size: int) -> bytearray:
    """Reads up to `size` bytes in pieces, so that a false header cannot exhaust memory."""
    content = bytearray()
    while len(content) < size and (piece := f.read(min(size - len(content), 1 << 20))):
        content += piece
    return content


def array_dataset(
    splits: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    where: str,
    class_names: Sequence[str] = (),
) -> RawDataset:
    """Validates arrays of images and labels; returns them as a raw data set.

    Args:
      splits: uint8 images (N, H, W) or (N, H, W, 1 or 3) and their labels (N,), by split.
      where: their origin, for messages.
      class_names: classes indexed by integer labels; defaults to the sorted labels.

    Raises:
      UserError: for arrays of another shape or type, or a label that is not a class.
    """
    checked = {s: (_check_images(x, s, where), y) for s, (x, y) in splits.items()}
    shapes = {images.shape[1:] for images, _ in checked.values()}
    if len(shapes) > 1:
        raise UserError(f"the splits of {where} differ in image shape: {sorted(shapes)}")
    # Labels are ignored unless all splits have them.
    labels = {
        split: _check_labels(y, len(images), split, where)
        for split, (images, y) in checked.items()
        if y is not None
    }
    if len(labels) < len(checked):
        columns = {s: ColumnarExamples(image=images) for s, (images, _) in checked.items()}
        return RawDataset(columns, shapes.pop())
    known = np.unique(np.concatenate(list(labels.values())))
    if class_names:
        known = np.arange(len(class_names))
        wrong = next((y for found in labels.values() for y in found if y not in known), None)
        if wrong is not None:
            raise UserError(
                f"the label {wrong} of {where} is not one of the {len(class_names)} classes"
            )
    columns = {
        split: ColumnarExamples(image=images, label=np.searchsorted(known, labels[split]))
        for split, (images, _) in checked.items()
    }
    return RawDataset(columns, shapes.pop(), tuple(class_names) or tuple(map(str, known.tolist())))


def _check_images(images: np.ndarray, split: str, where: str) -> np.ndarray:
    """Validates images and returns them as (N, H, W, C)."""
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or not images.size or images.shape[-1] not in (1, 3):
        raise UserError(
            f"the {split} images of {where} have the shape {images.shape}: it must be"
            " (count, height, width) or (count, height, width, 1 or 3)"
        )
    if images.dtype != np.uint8:
        raise UserError(
            f"the {split} images of {where} are {images.dtype}: convert them to uint8, 0 to 255"
        )
    return images


def _check_labels(labels: np.ndarray, count: int, split: str, where: str) -> np.ndarray:
    """Validates labels and returns them as (N,)."""
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (count,) or labels.dtype.kind not in "iubU":
        raise UserError(
            f"the {split} labels of {where} are {labels.dtype} {labels.shape}: one integer"
            f" or text for each of the {count} images is needed"
        )
    return labels
