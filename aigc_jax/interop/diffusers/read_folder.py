"""Reads a folder of a diffusers image model: fields and parameters of ours."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.interop import settings
from aigc_jax.interop.diffusers.classes import BY_CLASS
from aigc_jax.interop.diffusers.tables import ImageModel
from aigc_jax.interop.mapping import Fields, setting, words
from aigc_jax.interop.parameters import bind
from aigc_jax.interop.safetensors_folder import (
    canonical_names,
    import_folder,
    open_safetensors_folder,
    read_json,
    refuse_unknown,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
PIPELINE = "model_index.json"
NULL_CLASS = "_null_class"  # a key of ours, which diffusers ignores
META = words("_class_name _diffusers_version in_channels out_channels sample_size") | {NULL_CLASS}
# Attention's tensors before diffusers 0.13.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Far beyond any model, like `tables.LIMITS`.
MAX_CHANNELS, MAX_LEVELS, MAX_SIDE, MAX_CLASSES = 2**15, 12, 8192, 10**6


@dataclasses.dataclass(frozen=True)
class ImportedImages:
    """An image model of another library.

    Attributes:
      table: of its class.
      model: fields of `table.config`.
      params: of the network, float32.
      shape: of its images or latents, (H, W, C).
      classes: number of classes; 0: it is unconditional.
      dtype: of the weights as they were stored.
      notes: one sentence each, for the person who converts it.
    """

    table: ImageModel
    model: Fields
    params: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    dtype: str
    notes: tuple[str, ...] = ()


def read_diffusers_folder(folder: str) -> ImportedImages:
    """Reads the model in a folder with config.json and safetensors files.

    Raises:
      UserError: if the folder is incomplete, or its class, a setting or a tensor is not supported.
    """
    folder = os.path.expanduser(folder)
    where = os.path.join(folder, "config.json")
    if not os.path.isfile(where):
        _refuse_pipeline(folder)
        raise UserError(f"{shorten(folder)} has no config.json: is it a model's folder?")
    content, where = read_json(where), shorten(where)
    table = _find_table(content, where)
    fields, shape, classes = read_image_config(table, content, where)
    stored = open_safetensors_folder(folder, WEIGHTS)
    found = canonical_names(stored, _canonical_name, table.buffers, folder)
    config = settings.make_config(table, fields, where)
    fields |= table.from_tensors(
        config, lambda name: stored.read(found[name]) if name in found else None
    )
    config = settings.make_config(table, fields, where)
    shapes = table.shapes(config, shape[2], classes)
    tensors = bind(table.rules(config), shapes, table.hf)
    refuse_unknown(found, tensors, table.hf, folder)
    params, dtype = import_folder(tensors, shapes, stored, found, folder)
    notes = []
    if content.get("sample_size") is None:
        notes.append(f"config.json has no sample_size: {shape[0]}×{shape[1]} is assumed")
    return ImportedImages(table, fields, params, shape, classes, dtype, tuple(notes))


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


def _find_table(content: Mapping[str, Any], where: str) -> ImageModel:
    name = content.get("_class_name")
    if not isinstance(name, str) or name not in BY_CLASS:
        hint = did_you_mean(name, BY_CLASS) if isinstance(name, str) else "it has no _class_name"
        raise UserError(
            f"{where} is of a class that is not supported, {shorten(name, 60)!r}: {hint}"
        )
    return BY_CLASS[name]


def _canonical_name(name: str) -> str:
    """Replaces the names of attention's modules before diffusers 0.13."""
    old = re.fullmatch(r"(.*\battentions\.\d+)\.(\w+)\.(weight|bias)", name, re.ASCII)
    if old is None:
        return name
    block, module, leaf = old.groups()
    return f"{block}.{OLD_NAMES.get(module, module)}.{leaf}"


def read_image_config(
    table: ImageModel, content: Mapping[str, Any], where: str
) -> tuple[Fields, tuple[int, int, int], int]:
    """Returns our fields, the shape (H, W, C) of the images, and the number of classes.

    Args:
      table: of the class.
      content: of config.json.
      where: the file, for messages.

    Raises:
      UserError: if a key is unknown, or has a value that is not supported.
    """
    fields = settings.read_settings(table, content, where)
    read = META | ({table.classes} if table.classes else set())
    settings.check_keys(table, content, where, read)
    try:
        more = table.read(content)
    except ValueError as e:
        raise UserError(f"{where} {e}") from e
    for name, value in more.items():
        row = setting(name, name)  # checks type and range
        fields[name] = settings.read_setting(row, {name: value}, name, table.config, where)
    settings.check_limits(table, fields, where)
    channels = fields.get("channels", ())
    if len(channels) > MAX_LEVELS or max(channels, default=0) > MAX_CHANNELS:
        raise UserError(
            f"{where} sets channels to {shorten(channels, 60)}: at most {MAX_LEVELS} levels of"
            f" {MAX_CHANNELS} are supported"
        )
    shape, outputs = _shape(table, content, where)
    learns = "learned_sigma" in table.config.__dataclass_fields__
    if outputs not in (shape[2], shape[2] * (1 + learns)):
        raise UserError(
            f"{where} has out_channels={outputs} for in_channels={shape[2]}, which is not supported"
        )
    if learns:
        fields["learned_sigma"] = outputs > shape[2]
    classes = content.get(table.classes, table.default_classes)
    classes = _integer(classes, where, table.classes, MAX_CLASSES, 0)
    if "null_class" in table.config.__dataclass_fields__:
        fields["null_class"] = not classes or content.get(NULL_CLASS) is True
        classes -= bool(classes) and fields["null_class"]
    return fields, shape, classes


def _shape(
    table: ImageModel, content: Mapping[str, Any], where: str
) -> tuple[tuple[int, int, int], int]:
    """Returns (H, W, C) of the input, and the channels of the output."""
    size = content.get("sample_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    height, width = (_integer(n, where, "sample_size", MAX_SIDE, 32) for n in sides)
    channels = _integer(content.get("in_channels"), where, "in_channels", 4096, table.in_channels)
    default = table.out_channels or channels
    outputs = _integer(content.get("out_channels"), where, "out_channels", 8192, default)
    return (height, width, channels), outputs


def _integer(value: Any, where: str, name: str, most: int, default: int) -> int:
    value = default if value is None else value
    if type(value) is not int or not min(default, 1) <= value <= most:
        raise UserError(
            f"{where}: {name} must be an integer up to {most}, but it is {shorten(value, 60)}"
        )
    return value
