"""Images that any library has made, judged by the measures of our own."""

import dataclasses
import os
from typing import Any

import numpy as np

from aigc_jax.core.config import Data, Eval
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.fields import parse
from aigc_jax.core.workdir import read_config
from aigc_jax.experiment import build
from aigc_jax.modalities import readers, sources
from aigc_jax.modalities.image.metrics.fidelity import fidelity_of
from aigc_jax.modalities.image.metrics.mode_coverage import mode_report


def evaluate_images(
    images: str | np.ndarray,
    source: str = "",
    *,
    workdir: str = "",
    data_dir: str = "",
    out: str = "",
    **options: Any,
) -> dict[str, Any]:
    """How far given images are from a data set's, as `evaluate` says it of a model's samples.

    All of them are judged, and the floor is of as many real images: judge as many of each model.

    Args:
      images: uint8 (N, H, W, 1 or 3), or a folder of image files, or an npz or safetensors file
        with the array `images`.
      source: the data set, as in `data.source`.
      workdir: a run whose data they are compared with, if no source is given: split as there.
      data_dir: where a prepared data set lies.
      out: a PNG to write, of images beside their nearest training images; "": none.
      **options: fields of the section `eval`, such as `features`.

    Raises:
      UserError: if there are no such images or data, or they differ in shape.
    """
    data, terms = Data(), Eval()
    if workdir:
        config = build.parse_config(read_config(os.path.expanduser(workdir)))
        data, terms = config.data, config.eval
    elif not source:
        raise UserError("images are judged beside a data set: name it with --source or --workdir")
    given = {"source": source, "data_dir": data_dir}
    data = dataclasses.replace(data, **{k: v for k, v in given.items() if v})
    generated = read_images(images) if isinstance(images, str) else np.asarray(images)
    dataset = sources.load(data)
    if dataset.spec.modality != "image":
        raise UserError(f"data.source='{shorten(data.source)}' has no images to compare with")
    shape = tuple(dataset.spec.shape)
    if generated.dtype != np.uint8 or generated.shape[1:] != shape:
        raise UserError(
            f"the images are {generated.dtype} {generated.shape}, but those of"
            f" '{shorten(data.source)}' are uint8 of {shape}: make them the same"
        )
    options["samples"] = len(generated)
    terms = parse(Eval, {**dataclasses.asdict(terms), **options}, "eval")
    judge = fidelity_of(dataset, data.source, terms, os.path.expanduser(workdir))
    found = judge.report(generated, os.path.expanduser(out))
    return found | mode_report(dataset, generated)


def read_images(path: str) -> np.ndarray:
    """uint8 (N, H, W, C) of a folder of image files, or of a file of arrays.

    Raises:
      UserError: if there are none.
    """
    kind, _, rest = path.partition(":")
    if kind not in ("folder", "npz", "safetensors") or not rest:
        expanded = os.path.expanduser(path)
        if os.path.isdir(expanded):
            path = f"folder:{path}"
        elif path.endswith((".npz", ".safetensors")):
            path = f"{path.rpartition('.')[2]}:{path}"
        else:
            raise UserError(
                f"--images={shorten(path)} is neither a folder of images nor an npz or safetensors"
                " file of them"
            )
    content = readers.read(path, option="--images")
    return np.stack([make()["image"] for split in content.splits.values() for make in split])
