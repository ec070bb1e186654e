"""Folders of images."""

import os
from typing import Any

import numpy as np

from aigc_jax.data.readers.content import Content, Example
from aigc_jax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
MAX_PIXELS = 64_000_000  # a header may claim any size; refuse before memory is taken


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
    roots = {"train": path}
    if children & {"train", "training"}:
        roots = {SPLIT_NAMES[s]: os.path.join(path, s) for s in split_folders}
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
    from PIL import ImageOps

    try:
        image = Image.open(file)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{file} claims {image.width}×{image.height} pixels: too large")
        image.load()
        image = ImageOps.exif_transpose(image)  # as a viewer shows it
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
