"""Readers of people's own files: image folders, text, JSONL, npz and IDX.

Each reader checks what it reads and returns `Content`; a file that it cannot take is named in a
`UserError`.
"""

import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aigc_jax.errors import UserError

Example = dict[str, Any]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "test": "test"}  # fmt: skip
MAX_PIXELS = 64_000_000  # a header may claim any size; refuse before memory is taken


@dataclasses.dataclass
class Content:
    """What a reader found.

    Attributes:
      splits: `{split: examples}`, each readable once and of known length.
      image_shape: (H, W, C) for images; None for text.
      class_names: one per label; empty without labels.
    """

    splits: dict[str, Sequence[Callable[[], Example]]]
    image_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] = ()


def read_folder(path: str, image_size: int = 0) -> Content:
    """A folder of images: flat, or one folder per class; `train/` and `test/` may lie above.

    Args:
      path: the folder.
      image_size: resize and centre-crop to this many pixels a side; 0: they must agree already.
    """
    from PIL import Image

    if not os.path.isdir(path):
        raise UserError(f"there is no folder {path}")
    if image_size < 0 or image_size**2 > MAX_PIXELS:
        raise UserError(f"--image_size={image_size}: it must be from 1 to {int(MAX_PIXELS**0.5)}")
    children = {d.name for d in os.scandir(path) if d.is_dir()}
    split_folders = sorted(children & SPLIT_NAMES.keys())
    roots = {SPLIT_NAMES[s]: os.path.join(path, s) for s in split_folders} if (
        "train" in children or "training" in children
    ) else {"train": path}  # fmt: skip
    if "train" in roots and roots["train"] != path:
        if len(roots) < len(split_folders):
            raise UserError(f"{path} has two folders for one split: {', '.join(split_folders)}")
        inside = tuple(root + os.sep for root in roots.values())
        stray = [f for f, _ in _image_files(path) if not f.startswith(inside)]
        if stray:
            raise UserError(f"{stray[0]} lies outside the folders {', '.join(split_folders)}")
    found = {split: _image_files(root) for split, root in roots.items()}
    files = [f for pairs in found.values() for f, _ in pairs]
    if not files:
        raise UserError(f"the folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    for split, pairs in found.items():
        if not pairs:
            raise UserError(f"the folder {roots[split]} holds no images")
    names = sorted({c for pairs in found.values() for _, c in pairs if c is not None})
    unlabelled = [f for pairs in found.values() for f, c in pairs if c is None]
    if names and unlabelled:
        raise UserError(
            f"{unlabelled[0]} lies beside class folders: put every image into a class folder, or"
            " none"
        )
    sizes: dict[tuple[int, int], str] = {}
    colour = False
    for file in files:
        image = _open_image(Image, file)
        if image.mode[0] in "IF":
            raise UserError(f"{file} has more than 8 bits a pixel: convert it to 8 bits")
        colour |= image.mode not in ("L", "1", "LA")
        sizes.setdefault(image.size, file)
        image.close()
    if len(sizes) > 1 and not image_size:
        (first, a), (second, b) = list(sizes.items())[:2]
        raise UserError(
            f"images differ in size: {a} is {first[0]}×{first[1]} and {b} is"
            f" {second[0]}×{second[1]}; bring them to one size with --image_size=N"
        )
    width, height = (image_size, image_size) if image_size else next(iter(sizes))
    mode = "RGB" if colour else "L"

    def example(file: str, name: str | None) -> Example:
        image = _open_image(Image, file)
        if image_size:
            image = _fit(Image, image, image_size)
        pixels = np.asarray(image.convert(mode), np.uint8)
        pixels = pixels.reshape(height, width, -1)
        return {"image": pixels} | ({"label": names.index(name)} if name is not None else {})

    splits = {
        split: [lambda file=file, name=name: example(file, name) for file, name in pairs]
        for split, pairs in found.items()
    }
    return Content(splits, (height, width, 3 if colour else 1), tuple(names))


def _image_files(root: str) -> list[tuple[str, str | None]]:
    """Image files with their class: the name of the folder under `root` they lie in."""
    pairs = []
    for folder, _, files in sorted(os.walk(root)):
        inside = os.path.relpath(folder, root)
        name = None if inside == "." else inside.split(os.sep)[0]
        pairs += [
            (os.path.join(folder, f), name)
            for f in sorted(files)
            if f.lower().endswith(IMAGE_SUFFIXES) and not f.startswith(".")
        ]
    return pairs


def _open_image(Image: Any, file: str) -> Any:
    """The decoded image; UserError names a file that is broken or absurdly large."""
    try:
        image = Image.open(file)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{file} claims {image.width}×{image.height} pixels: too large")
        image.load()
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"{file} is not a readable image ({' '.join(str(e).split())[:100]}): mend or remove it"
        ) from e
    return image


def _fit(Image: Any, image: Any, size: int) -> Any:
    """Scaled so that the shorter side fits, then cropped at the centre."""
    from PIL import ImageOps

    image = image.convert("RGB") if image.mode in ("P", "RGBA", "CMYK") else image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def read_text(pattern: str) -> Content:
    """Text files, one document each; `pattern` is a path with wildcards."""
    files = sorted(f for f in glob.glob(os.path.expanduser(pattern), recursive=True))
    files = [f for f in files if os.path.isfile(f)]
    if not files:
        raise UserError(f"no file matches {pattern}")
    documents = []
    for file in files:
        with open(file, "rb") as f:
            documents.append(_decode(f.read(), file))
    return _text_content(documents, pattern)


def read_jsonl(path: str, text_field: str = "text") -> Content:
    """One JSON object a line; its `text_field` is the document."""
    documents = []
    with _open(path) as f:
        for number, line in enumerate(f, 1):
            where = f"line {number} of {path}"
            if not line.strip():
                continue
            try:
                record = json.loads(_decode(line, where))
            except (ValueError, RecursionError) as e:
                raise UserError(f"{where} is not JSON ({e})") from e
            text = record.get(text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise UserError(
                    f"{where} has no text under '{text_field}': name the field with --text_field"
                )
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as e:
                raise UserError(f"{where} is not Unicode text ({e})") from e
            documents.append(text)
    return _text_content(documents, path)


def _text_content(documents: list[str], where: str) -> Content:
    documents = [d for d in documents if d.strip()]
    if not documents:
        raise UserError(f"{where} holds no text")
    return Content({"train": [lambda d=d: {"text": d} for d in documents]})


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{where} is not UTF-8 text (byte {e.start}): convert it first") from e


def _open(path: str) -> Any:
    try:
        return open(os.path.expanduser(path), "rb")
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from e


def read_npz(path: str) -> Content:
    """Arrays of images, and labels if present.

    Keys: `images` and `labels`, or per split `x_train`, `y_train`, `x_test`, `y_test` (Keras), or
    `train_images`, `train_labels`, … (MedMNIST).
    """
    with _open(path) as f:
        try:
            archive = dict(np.load(f, allow_pickle=False))
        except Exception as e:
            raise UserError(f"{path} is not an npz of plain arrays ({e})") from e
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
            f"{path} has the arrays {', '.join(archive) or 'none'}: name them images and labels,"
            " or x_train, y_train, x_test, y_test"
        )
    return _array_content(splits, path)


def read_idx(path: str) -> Content:
    """A folder with MNIST's four IDX files, gzipped or not."""
    splits = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _idx_file(path, f"{stem}-images-idx3-ubyte", required=split == "train")
        labels = _idx_file(path, f"{stem}-labels-idx1-ubyte", required=False)
        if images:
            splits[split] = (read_idx_file(images, 3), read_idx_file(labels, 1) if labels else None)
    return _array_content(splits, path)


def _idx_file(folder: str, name: str, required: bool) -> str | None:
    for stem in (name, name.replace("-idx", ".idx")):
        for candidate in (stem, f"{stem}.gz"):
            if os.path.isfile(os.path.join(folder, candidate)):
                return os.path.join(folder, candidate)
    if required:
        raise UserError(f"there is no {name}(.gz) in {folder}")
    return None


def read_idx_file(path: str, dims: int) -> np.ndarray:
    """One IDX file of unsigned bytes: magic 0 0 8 dims, big-endian sizes, then the data."""
    with _open(path) as raw:
        f = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        try:
            header = f.read(4 + 4 * dims)
            if header[:4] != bytes([0, 0, 8, dims]) or len(header) != 4 + 4 * dims:
                raise UserError(f"{path} is not an IDX file of {dims}-dimensional bytes")
            shape = tuple(int(n) for n in np.frombuffer(header, ">u4", dims, 4))
            size = int(np.prod([float(n) for n in shape]))
            # Read to the end, but never more than was claimed: the header alone proves nothing.
            data = b"".join(iter(lambda: f.read(1 << 20), b"")) if size < 1 << 34 else b""
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"{path} is damaged ({e})") from e
    if len(data) != size:
        raise UserError(
            f"{path} is damaged: its header says {'×'.join(map(str, shape))} bytes, but"
            f" {len(data)} follow"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


def _array_content(splits: dict[str, tuple[np.ndarray, np.ndarray | None]], path: str) -> Content:
    checked, classes, shapes = {}, set(), set()
    for split, (images, labels) in splits.items():
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or not images.size or images.shape[-1] not in (1, 3):
            raise UserError(
                f"the {split} images of {path} have the shape {images.shape}: it must be"
                " (count, height, width) or (count, height, width, 1 or 3)"
            )
        if images.dtype != np.uint8:
            raise UserError(
                f"the {split} images of {path} are {images.dtype}: store them as uint8, 0 to 255"
            )
        if labels is not None:
            labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
                raise UserError(
                    f"the {split} labels of {path} are {labels.dtype} {labels.shape}: one integer"
                    f" for each of the {len(images)} images is needed"
                )
            classes |= set(np.unique(labels).tolist())
        shapes.add(images.shape[1:])
        checked[split] = (images, labels)
    if len(shapes) > 1:
        raise UserError(f"the splits of {path} differ in image shape: {sorted(shapes)}")
    # Labels of some splits only are of no use: they are left out.
    labelled = all(labels is not None for _, labels in checked.values())
    names = sorted(classes) if labelled else []
    return Content(
        {s: _lazy(x, y if labelled else None, names) for s, (x, y) in checked.items()},
        shapes.pop(),
        tuple(map(str, names)),
    )


def _lazy(images: np.ndarray, labels: np.ndarray | None, names: list[int]) -> list:
    index = {name: i for i, name in enumerate(names)}

    def example(i: int) -> Example:
        label = {} if labels is None else {"label": index[int(labels[i])]}
        return {"image": images[i], **label}

    return [lambda i=i: example(i) for i in range(len(images))]


def read(source: str, *, image_size: int = 0, text_field: str = "text") -> Content:
    """What `--from=KIND:PATH` names.

    Raises:
      UserError: for an unknown kind, or files that cannot be taken.
    """
    kind, _, path = source.partition(":")
    readers: dict[str, Callable[[], Content]] = {
        "folder": lambda: read_folder(os.path.expanduser(path), image_size),
        "text": lambda: read_text(path),
        "jsonl": lambda: read_jsonl(path, text_field),
        "npz": lambda: read_npz(path),
        "idx": lambda: read_idx(os.path.expanduser(path)),
    }
    if kind not in readers or not path:
        raise UserError(
            f"--from={source} is not of the form KIND:PATH with KIND one of {', '.join(readers)}"
        )
    return readers[kind]()
