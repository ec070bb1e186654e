"""Reads folders of images."""

import os
import unicodedata
from collections.abc import Mapping, Sequence

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.data.raw_dataset import Example, RawDataset
from aigc_jax.modalities.image.image_files import MAX_PIXELS, colourful, open_image, to_pixels

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

# Unicode categories invalid in class names: control characters, undecodable bytes, line ends.
UNKEPT = ("Cc", "Cs", "Zl", "Zp")

Files = Sequence[tuple[str, str | None]]  # paths with their class, if any


def read_folder(path: str, image_size: int = 0) -> RawDataset:
    """Reads a folder of images: flat or one folder per class, optionally in `train/` and `test/`.

    Args:
      path: the folder.
      image_size: side in pixels to which images are resized and centre-cropped; 0: unchanged.

    Raises:
      UserError: if the folder has no images, or they differ in size.
    """
    if not os.path.isdir(path):
        raise UserError(f"there is no folder {shorten(path)}")
    if image_size < 0 or image_size**2 > MAX_PIXELS:
        raise UserError(f"--image_size={image_size}: it must be from 1 to {int(MAX_PIXELS**0.5)}")
    found = {}
    for split, root in _split_folders(path).items():
        found[split] = _image_files(root)
        if not found[split]:
            raise UserError(
                f"the folder {shorten(root)} has no images ({', '.join(IMAGE_SUFFIXES)})"
            )
    names = _class_names(found)
    sizes: dict[tuple[int, int], str] = {}
    colour = False
    for file in (f for pairs in found.values() for f, _ in pairs):
        image = open_image(file)
        colour |= colourful(image)
        sizes.setdefault(image.size, file)
    if len(sizes) > 1 and not image_size:
        (first, a), (second, b) = list(sizes.items())[:2]
        raise UserError(
            f"images differ in size: {shorten(a)} is {first[0]}×{first[1]} and {shorten(b)} is"
            f" {second[0]}×{second[1]}; resize them with aigc prepare --image_size=N"
        )
    width, height = (image_size, image_size) if image_size else next(iter(sizes))
    shape = (height, width, 3 if colour else 1)

    def example(file: str, name: str | None) -> Example:
        pixels = to_pixels(file, shape, fit=image_size > 0)
        return {"image": pixels} | ({"label": names.index(name)} if name is not None else {})

    splits = {
        split: [lambda file=file, name=name: example(file, name) for file, name in pairs]
        for split, pairs in found.items()
    }
    return RawDataset(splits, shape, tuple(names))


def _split_folders(path: str) -> dict[str, str]:
    """Returns `{split: folder}` of the folders `train`, `test`, … in `path`, or `path` as train."""
    try:
        with os.scandir(path) as entries:
            children = {d.name for d in entries if d.is_dir()}
    except OSError as e:
        raise UserError(f"the folder {shorten(path)} cannot be read: {one_line(e)}") from e
    split_folders = sorted(children & SPLIT_NAMES.keys())
    if not children & {"train", "training"}:
        return {"train": path}
    roots = {SPLIT_NAMES[s]: os.path.join(path, s) for s in split_folders}
    where = shorten(path)
    if len(roots) < len(split_folders):
        raise UserError(f"{where} has two folders for one split: {', '.join(split_folders)}")
    inside = tuple(root + os.sep for root in roots.values())
    stray = [f for f, _ in _image_files(path) if not f.startswith(inside)]
    if stray:
        raise UserError(f"{shorten(stray[0])} is outside the folders {', '.join(split_folders)}")
    return roots


def _class_names(found: Mapping[str, Files]) -> list[str]:
    """Returns the sorted classes; UserError if images lack one, or TFDS cannot store a name."""
    pairs = [pair for files in found.values() for pair in files]
    names = sorted({name for _, name in pairs if name is not None})
    unlabelled = [file for file, name in pairs if name is None]
    if names and unlabelled:
        raise UserError(
            f"{shorten(unlabelled[0])} is outside the class folders: move every image into a class"
            " folder, or none"
        )
    for name in names:
        # TFDS stores the names as lines of a text file, stripped of spaces.
        if name != name.strip() or any(unicodedata.category(c) in UNKEPT for c in name):
            raise UserError(
                f"the class folder '{shorten(name)}' has an invalid name: rename it, without"
                " leading or trailing spaces, line ends or bytes that are not text"
            )
    return names


def _image_files(root: str) -> Files:
    """Returns image files with their class, the name of their folder under `root`.

    Links to folders are rejected: they may be cyclic or point outside the folder.
    """
    pairs = []

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {shorten(error.filename)} cannot be read: {one_line(error)}")

    for folder, inside, files in sorted(os.walk(root, onerror=refuse)):
        links = [os.path.join(folder, d) for d in inside if os.path.islink(os.path.join(folder, d))]
        if links:
            raise UserError(
                f"{shorten(min(links))} is a link to a folder, which is not followed: replace it by"
                " a copy, or remove it"
            )
        relative = os.path.relpath(folder, root)
        name = None if relative == os.curdir else relative.split(os.sep)[0]
        pairs += [
            (os.path.join(folder, f), name)
            for f in sorted(files)
            if f.lower().endswith(IMAGE_SUFFIXES) and not f.startswith(".")
        ]
    return pairs
