"""Evaluates images from any source with the metrics of generated images."""

import dataclasses
import os
from typing import Any

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.workdir import read_config
from aigc_jax.experiment import build
from aigc_jax.experiment.eval_options import eval_section, modality_options, override_eval
from aigc_jax.modalities import readers, sources
from aigc_jax.modalities.image.metrics.fidelity import fidelity_of
from aigc_jax.modalities.image.metrics.mode_coverage import mode_coverage


def evaluate_images(
    images: str | np.ndarray,
    source: str = "",
    *,
    workdir: str = "",
    data_dir: str = "",
    out: str = "",
    **options: Any,
) -> dict[str, Any]:
    """Compares images with a data set, by the metrics that `evaluate` computes of samples.

    All images are used. The metrics depend on their number: compare equal numbers.

    Args:
      images: uint8 (N, H, W, 1 or 3), or a folder of image files, or an npz or safetensors file
        with the array `images`.
      source: the data set, as in `data.source`.
      workdir: a run whose data set and split are used, if `source` is empty.
      data_dir: folder of prepared data sets.
      out: path of a PNG of images next to their nearest training images; if empty, none is written.
      **options: fields of the sections `eval` and `eval.image`, such as `features`.

    Raises:
      UserError: if images or data cannot be found, or differ in shape.
    """
    data, section = Data(), eval_section()()
    if workdir:
        config = build.parse_config(read_config(os.path.expanduser(workdir)))
        data, section = config.data, config.eval
    elif not source:
        raise UserError("images are compared with a data set: set --source or --workdir")
    given: dict[str, Any] = {"source": source, "data_dir": data_dir}
    data = dataclasses.replace(data, **{k: v for k, v in given.items() if v})
    generated = read_images(images) if isinstance(images, str) else np.asarray(images)
    dataset = sources.load_source(data)
    if "image" not in dataset.spec.fields:
        raise UserError(f"data.source='{shorten(data.source)}' has no images to compare with")
    shape = dataset.spec.example_batch(1)["image"].shape[1:]
    if generated.dtype != np.uint8 or generated.shape[1:] != shape:
        raise UserError(
            f"images are {generated.dtype} {generated.shape}, but those of"
            f" '{shorten(data.source)}' are uint8 of {shape}: convert them"
        )
    section = override_eval(section, "image", options)
    image_options = modality_options(section, "image")
    fidelity = fidelity_of(
        dataset, data.source, image_options, len(generated), os.path.expanduser(workdir)
    )
    found = fidelity.report(generated, os.path.expanduser(out))
    return found | mode_coverage(dataset, generated)


def read_images(path: str) -> np.ndarray:
    """Reads uint8 images (N, H, W, C) from a folder of image files or an array file.

    Raises:
      UserError: if it is neither.
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
    content = readers.read_files(path, option="--images")
    return np.stack([make()["image"] for split in content.splits.values() for make in split])
