"""Writes an image model of ours as a folder that diffusers loads."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from aigc_jax.core.errors import UserError
from aigc_jax.interop import settings
from aigc_jax.interop.diffusers.classes import BY_CONFIG
from aigc_jax.interop.diffusers.read_folder import NULL_CLASS, WEIGHTS
from aigc_jax.interop.diffusers.scheduler import SCHEDULER
from aigc_jax.interop.diffusers.tables import ImageModel
from aigc_jax.interop.folder_writer import (
    MAX_SHARD_BYTES,
    check_dtype,
    new_folder,
    write_json,
    write_safetensors,
)
from aigc_jax.interop.mapping import Fields
from aigc_jax.interop.parameters import bind


def write_diffusers_folder(
    folder: str,
    config: Any,
    params: Mapping[str, Any],
    shape: tuple[int, int, int],
    classes: int,
    *,
    dtype: str = "float32",
    scheduler: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Writes config.json and the weights; the folder appears complete or not at all.

    Args:
      folder: may exist if it is empty.
      config: of the model: a `UNetConfig`, `DiTConfig` or `KLConfig`.
      params: of the network.
      shape: of its images or latents, (H, W, C).
      classes: number of classes; 0: it is unconditional.
      dtype: of the weights: float32, float16 or bfloat16.
      scheduler: content of scheduler_config.json; None: there is none.
      max_shard_bytes: of one file of weights.

    Returns:
      The class that was written.

    Raises:
      UserError: if the class cannot hold the model, or the folder is in use.
      StorageError: if it cannot be written.
    """
    table, fields = BY_CONFIG[type(config)], dataclasses.asdict(config)
    check_dtype(dtype)
    lacking = settings.incompatibilities(table, fields | dict(shape=shape, classes=classes))
    if config.filled(shape[:2]) != tuple(shape[:2]):
        lacking.append(f"sides that need no padding, other than {shape[0]}×{shape[1]}")
    if lacking:
        raise UserError(
            f"{table.hf} of diffusers does not fit this model: it needs {' and '.join(lacking)}"
        )
    leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    tensors = bind(table.rules(config), shapes, f"{table.hf} of diffusers")
    with new_folder(folder) as place:
        write_json(place, "config.json", _config_json(table, fields, shape, classes))
        if scheduler:
            write_json(place, SCHEDULER, scheduler)
        write_safetensors(
            place, tensors, leaves, dtype=dtype, file=WEIGHTS, max_bytes=max_shard_bytes
        )
    return table.hf


def _config_json(
    table: ImageModel, fields: Fields, shape: tuple[int, int, int], classes: int
) -> dict[str, Any]:
    """Returns the content of config.json."""
    config: dict[str, Any] = {"_class_name": table.hf, "_diffusers_version": "0.40.0"}
    config |= settings.write_settings(table, fields) | table.write(fields)
    height, width, channels = shape
    config["sample_size"] = height if height == width else [height, width]
    outputs = channels * (1 + fields.get("learned_sigma", False))
    config |= dict(in_channels=channels, out_channels=outputs)
    if table.classes and classes:
        null = fields.get("null_class", False)
        config[table.classes] = classes + null
        config |= {NULL_CLASS: True} if null else {}
    return config
