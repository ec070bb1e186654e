"""Folders of diffusers' image models ↔ the fields and parameters of ours."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.interop.diffusers import names as image_names
from aigc_jax.interop.diffusers.models import BY_CONFIG, MODELS
from aigc_jax.interop.diffusers.schema import Fields, Model
from aigc_jax.interop.mapping import IGNORED, REQUIRED, setting, words
from aigc_jax.interop.transformers import names
from aigc_jax.interop.transformers.export import DTYPES as WRITTEN
from aigc_jax.interop.transformers.export import appearing, write_json, write_weights
from aigc_jax.interop.transformers.folder import gathered
from aigc_jax.interop.transformers.settings import read_row, write
from aigc_jax.interop.weights import open_folder, read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINE = "model_index.json"
NULL_CLASS = "_null_class"  # a key of ours, which diffusers leaves alone
META = words("_class_name _diffusers_version in_channels out_channels sample_size") | {NULL_CLASS}
# Attention's tensors before diffusers 0.13.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Far beyond any model; what a file claims takes time before its tensors are compared with it.
LARGEST = dict(blocks=64, depth=2000, width=2**17, patch_size=256, latent=4096, embedding=2**17,
               frequencies=2**16, heads=4096)  # fmt: skip
LARGEST_CHANNELS, MOST_LEVELS, LARGEST_SIDE, MOST_CLASSES = 2**15, 12, 8192, 10**6


@dataclasses.dataclass(frozen=True)
class ImportedImages:
    """An image model from elsewhere.

    Attributes:
      kind: its table.
      model: fields of `kind.config`.
      params: of the network, float32.
      shape: of its images or latents, (H, W, C).
      classes: how many it knows.
      dtype: of the weights as they were stored.
      notes: what the person should know, a sentence each.
    """

    kind: Model
    model: Fields
    params: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    dtype: str
    notes: tuple[str, ...] = ()


# Reading ------------------------------------------------------------------------------------------


def read_image_folder(folder: str) -> ImportedImages:
    """The model in a folder with config.json and safetensors files.

    Raises:
      UserError: if it is no such folder, or its class, a setting or a tensor does not fit.
    """
    folder = os.path.expanduser(folder)
    where = os.path.join(folder, "config.json")
    if not os.path.isfile(where):
        _refuse_pipeline(folder)
        raise UserError(f"{shorten(folder)} has no config.json: is it a model's folder?")
    theirs, where = read_json(where), shorten(where)
    kind = _kind(theirs, where)
    fields, shape, classes = _read_settings(kind, theirs, where)
    stored = open_folder(folder, WEIGHTS)
    found = _names(stored, kind, folder)
    config = _config(kind, fields, where)
    fields |= kind.settle(config, lambda name: stored.read(found[name]) if name in found else None)
    config = _config(kind, fields, where)
    ours = kind.init(config, shape[2], classes)
    wanted = image_names.tensors(kind.pairs(config), ours, kind.theirs)
    for name in sorted(found.keys() - {tensor.name for tensor in wanted}):
        raise UserError(
            f"{shorten(folder)} has the tensor {shorten(found[name], 100)}, which the {kind.theirs}"
            " that its config.json describes does not have"
        )
    params, dtype = gathered(wanted, ours, stored, found, folder, image_names.fill)
    notes = []
    if theirs.get("sample_size") is None:
        notes.append(f"config.json has no sample_size: images of {shape[0]}×{shape[1]} are taken")
    return ImportedImages(kind, fields, params, shape, classes, dtype, tuple(notes))


def _refuse_pipeline(folder: str) -> None:
    """Raises UserError if the folder is that of a pipeline, naming its models."""
    if not os.path.isfile(os.path.join(folder, PIPELINE)):
        return
    models = [
        name
        for name in sorted(os.listdir(folder))
        if os.path.isfile(os.path.join(folder, name, "config.json"))
    ]
    some = " or ".join(shorten(os.path.join(folder, name), 100) for name in models[:5])
    raise UserError(
        f"{shorten(folder)} is a pipeline of several models: name one of them,"
        f" {some or 'though it has none with a config.json'}"
    )


def _kind(theirs: Mapping[str, Any], where: str) -> Model:
    name = theirs.get("_class_name")
    if not isinstance(name, str) or name not in MODELS:
        hint = did_you_mean(name, MODELS) if isinstance(name, str) else "it has no _class_name"
        raise UserError(f"{where} is of a class that is not read, {shorten(name, 60)!r}: {hint}")
    return MODELS[name]


def _config(kind: Model, fields: Fields, where: str) -> Any:
    try:
        return kind.config(**fields)
    except UserError as e:
        raise UserError(f"{where} describes what cannot be: {e}") from e


def _read_settings(
    kind: Model, theirs: Mapping[str, Any], where: str
) -> tuple[Fields, tuple[int, int, int], int]:
    """Our fields, the images' shape and the number of classes."""
    fields: Fields = dict(kind.ours_fixed)
    for row in kind.settings:
        for ours in row.ours:
            fields[ours] = read_row(row, theirs, ours, where, kind.config)
    _check_keys(kind, theirs, where)
    try:
        more = kind.read(theirs)
    except ValueError as e:
        raise UserError(f"{where} {e}") from e
    for name, value in more.items():  # of the right types, and in range
        fields[name] = read_row(setting(name, name), {name: value}, name, where, kind.config)
    channels = fields.get("channels", ())
    over = [name for name in LARGEST.keys() & fields.keys() if fields[name] > LARGEST[name]]
    if len(channels) > MOST_LEVELS or max(channels, default=0) > LARGEST_CHANNELS or over:
        raise UserError(f"{where} describes a model that is too large: none has such sizes")
    shape, outputs = _shape(kind, theirs, where)
    learns = "learned_sigma" in kind.config.__dataclass_fields__
    if outputs not in (shape[2], shape[2] * (1 + learns)):
        raise UserError(
            f"{where} has out_channels={outputs} for in_channels={shape[2]}, which is not supported"
        )
    if learns:
        fields["learned_sigma"] = outputs > shape[2]
    classes = theirs.get(kind.classes, kind.default_classes)
    classes = _whole(classes, where, kind.classes, MOST_CLASSES, 0)
    if "null_class" in kind.config.__dataclass_fields__:
        fields["null_class"] = not classes or theirs.get(NULL_CLASS) is True
        classes -= bool(classes) and fields["null_class"]
    return fields, shape, classes


def _shape(kind: Model, theirs: Mapping[str, Any], where: str) -> tuple[tuple[int, int, int], int]:
    """(H, W, C) of the input, and the channels of the output."""
    size = theirs.get("sample_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    height, width = (_whole(n, where, "sample_size", LARGEST_SIDE, 32) for n in sides)
    colours = _whole(theirs.get("in_channels"), where, "in_channels", 4096, kind.colours)
    usual = kind.outputs or colours
    outputs = _whole(theirs.get("out_channels"), where, "out_channels", 8192, usual)
    return (height, width, colours), outputs


def _whole(value: Any, where: str, name: str, most: int, default: int) -> int:
    value = default if value is None else value
    if type(value) is not int or not min(default, 1) <= value <= most:
        raise UserError(
            f"{where}: {name} must be a number up to {most}, but it is {shorten(value, 60)}"
        )
    return value


def _check_keys(kind: Model, theirs: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a key that is unknown, or has a value that is not supported."""
    read = {row.theirs for row in kind.settings} | kind.ignored | META | IGNORED | {kind.classes}
    for key, value in theirs.items():
        if key in read:
            continue
        if key in kind.fixed:
            if isinstance(value, bool) != isinstance(kind.fixed[key][0], bool) or (
                value not in kind.fixed[key]
            ):
                raise UserError(
                    f"{where} sets {key}={shorten(value, 60)}, which is not supported for"
                    f" {kind.theirs}"
                )
        elif value is not None:
            raise UserError(
                f"{where} sets {shorten(key, 60)}={shorten(value, 60)}, which is unknown for"
                f" {kind.theirs} and may change what it computes: remove it if it does not"
            )


def _names(stored: Any, kind: Model, folder: str) -> dict[str, str]:
    """The name in the file of each tensor; buffers are left out."""
    found: dict[str, str] = {}
    for name in stored.files:
        full = name
        if old := re.fullmatch(r"(.*\battentions\.\d+)\.(\w+)\.(weight|bias)", name, re.ASCII):
            block, module, leaf = old.groups()
            full = f"{block}.{OLD_NAMES.get(module, module)}.{leaf}"
        if full in found:
            raise UserError(
                f"{shorten(folder)} has {shorten(full, 100)} twice, by an old and a new name"
            )
        if full not in kind.buffers:
            found[full] = name
    return found


# Writing ------------------------------------------------------------------------------------------


def write_image_folder(
    folder: str,
    config: Any,
    params: Mapping[str, Any],
    shape: tuple[int, int, int],
    classes: int,
    *,
    dtype: str = "float32",
    scheduler: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> str:
    """Writes config.json and the weights; the folder appears whole or not at all.

    Args:
      folder: may exist if it is empty.
      config: of a U-Net, a DiT or a KL autoencoder.
      params: of the network.
      shape: of its images or latents, (H, W, C).
      classes: how many it knows; 0: it is unconditional.
      dtype: of the weights: float32, float16 or bfloat16.
      scheduler: scheduler_config.json; none: there is none.
      max_shard_bytes: of one file of weights.

    Returns:
      The class that was written.

    Raises:
      UserError: if no class holds the model, or the folder is in use.
      StorageError: if it cannot be written.
    """
    kind, fields = BY_CONFIG[type(config)], dataclasses.asdict(config)
    if dtype not in WRITTEN:
        raise UserError(f"dtype must be one of {', '.join(WRITTEN)}, but it is {dtype}")
    lacking = obstacles(kind, fields, shape, classes)
    if config.filled(shape[:2]) != tuple(shape[:2]):
        lacking.append(f"sides that it need not fill up, other than {shape[0]}×{shape[1]}")
    if lacking:
        raise UserError(
            f"{kind.theirs} of diffusers does not fit this model: it needs {' and '.join(lacking)}"
        )
    leaves = {path: np.asarray(leaf) for path, leaf in names.flat(params).items()}
    ours = {path: leaf.shape for path, leaf in leaves.items()}
    tensors = image_names.tensors(kind.pairs(config), ours, kind.theirs)
    with appearing(folder) as place:
        write_json(place, "config.json", _write_settings(kind, fields, shape, classes))
        if scheduler:
            write_json(place, "scheduler_config.json", scheduler)
        write_weights(place, tensors, leaves, dtype, max_shard_bytes, WEIGHTS, image_names.read)
    return kind.theirs


def obstacles(kind: Model, fields: Fields, shape: tuple[int, int, int], classes: int) -> list[str]:
    """What their class needs of a model and does not get, in words."""
    found = [
        f"model.{name}={value}, but it is {fields[name]}"
        for name, value in kind.ours_fixed.items()
        if fields[name] != value
    ]
    for row in kind.settings:
        if write(row, fields) is REQUIRED:
            found.append(f"another model.{row.ours[0]} than {fields[row.ours[0]]}")
    given = fields | dict(shape=shape, classes=classes)
    found += [need for need, holds in kind.needs if not holds(given)]
    return found


def _write_settings(
    kind: Model, fields: Fields, shape: tuple[int, int, int], classes: int
) -> dict[str, Any]:
    """config.json."""
    config = {"_class_name": kind.theirs, "_diffusers_version": "0.40.0"}
    config |= {row.theirs: write(row, fields) for row in kind.settings}
    config |= {key: values[0] for key, values in kind.fixed.items()} | kind.write(fields)
    height, width, colours = shape
    config["sample_size"] = height if height == width else [height, width]
    outputs = colours * (1 + fields.get("learned_sigma", False))
    config |= dict(in_channels=colours, out_channels=outputs)
    if kind.classes and classes:
        null = fields.get("null_class", False)
        config[kind.classes] = classes + null
        config |= {NULL_CLASS: True} if null else {}
    return config
