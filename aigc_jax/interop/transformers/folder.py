"""A folder of Hugging Face's transformers → the fields and parameters of our transformer."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.interop.mapping import Architecture
from aigc_jax.interop.transformers import names, settings
from aigc_jax.interop.weights import DTYPES, Tensors, open_folder, read_json

HEADS = ("lm_head.", "cls.")  # whose names never have the prefix
ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")  # of special tokens


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model from elsewhere.

    Attributes:
      model: fields of `TransformerConfig`, `vocab_size` and `context` among them.
      params: the collection "params" of `Transformer`, float32.
      architecture: `model_type`.
      dtype: of the weights as they were stored.
      generation: what generation_config.json says.
      specials: ids of special tokens by their role (`ROLES`); "eos" may have several.
      notes: what the person should know, a sentence each.
      tokenizer: a `tokenizers.Tokenizer`, if the file holds one.
      chat_template: Jinja, if the file holds one.
    """

    model: dict[str, Any]
    params: dict[str, Any]
    architecture: str
    dtype: str
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)
    specials: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tokenizer: Any = None
    chat_template: str = ""


def read_folder(folder: str) -> Imported:
    """The model in a folder with config.json and safetensors files.

    At its peak it takes the memory of the float32 model and one tensor.

    Raises:
      UserError: if it is no such folder, or its architecture, a setting or a tensor does not fit.
    """
    folder = os.path.expanduser(folder)
    where = os.path.join(folder, "config.json")
    if not os.path.isfile(where):
        raise UserError(f"{shorten(folder)} has no config.json: is it a model's folder?")
    config = read_json(where)
    arch = settings.architecture_of(config, shorten(where))
    fields = settings.read_settings(arch, config, shorten(where))
    stored = open_folder(folder)
    found = {_full_name(name, arch, stored): name for name in stored.files}
    notes = []
    if arch.head and not any(name.startswith(arch.head) for name in found):
        fields |= dict(head_transform=False, head_bias=False)
        notes.append("it has no head for masked tokens: only its hidden states are of use")
    ours = names.shapes(settings.config_of(fields, shorten(where)))
    wanted = names.tensors(arch, ours)
    if fields["tie_embeddings"]:
        _drop_copies(found, arch, stored)
    notes += _check_rest(found, {tensor.name for tensor in wanted}, arch, folder)
    params, dtype = gathered(wanted, ours, stored, found, folder)
    generation, path = {}, os.path.join(folder, "generation_config.json")
    if os.path.exists(path):
        generation = read_json(path)
    return Imported(
        model=fields,
        params=params,
        architecture=arch.name,
        dtype=dtype,
        generation=generation,
        specials=_specials(config, fields["vocab_size"])
        | _specials(generation, fields["vocab_size"]),
        notes=tuple(notes),
    )


def _full_name(name: str, arch: Architecture, stored: Tensors) -> str:
    """A tensor's name with the architecture's prefix, without which some files are written."""
    full = name if name.startswith((arch.prefix, *HEADS)) else arch.prefix + name
    for old, new in arch.renamed.items():
        full = re.sub(rf"{old}$", new, full)
    if full != name and full in stored.files:
        raise UserError(f"the weights have both {shorten(name, 100)} and {shorten(full, 100)}")
    return full


def _drop_copies(found: dict[str, str], arch: Architecture, stored: Tensors) -> None:
    """Leaves one of two tensors that are tied; UserError if they differ."""
    for copy, source in arch.copies.items():
        if copy not in found:
            continue
        name = found.pop(copy)
        if found.setdefault(source, name) == name:
            continue
        if not np.array_equal(stored.read(name), stored.read(found[source])):
            raise UserError(
                f"config.json ties {copy} to {source}, but they differ: set tie_word_embeddings to"
                " false"
            )


def _check_rest(
    found: Mapping[str, str], wanted: set[str], arch: Architecture, folder: str
) -> list[str]:
    """Notes on tensors that nobody wants; UserError for one that is unknown."""
    notes = {}
    for full, name in found.items():
        if full in wanted or any(re.fullmatch(pattern, full) for pattern in arch.buffers):
            continue
        what = next((what for pattern, what in arch.unread if re.fullmatch(pattern, full)), None)
        if what is None:
            raise UserError(
                f"{shorten(folder)} has the tensor {shorten(name, 100)}, which the {arch.name}"
                " that its"
                " config.json describes does not have"
            )
        notes[what] = f"{what} is left out: language modelling does not use it"
    return list(notes.values())


def gathered(
    wanted: Sequence[Any],
    ours: Mapping[str, names.Shape],
    stored: Tensors,
    found: Mapping[str, str],
    folder: str,
    put: names.Put = names.fill,
) -> tuple[dict[str, Any], str]:
    """Our parameters, float32, from a folder's tensors, and the type in which these are stored.

    Args:
      wanted: their tensors.
      ours: the shape of each parameter, by path.
      stored: what the folder holds.
      found: the name there of each of their tensors.
      folder: for messages.
      put: writes a tensor to its places in our parameters.

    Raises:
      UserError: if a tensor is missing, or of another shape or a type that is not read.
    """
    dtypes = {stored.dtypes[found[tensor.name]] for tensor in wanted if tensor.name in found}
    for dtype in sorted(dtypes - set(DTYPES)):
        raise UserError(
            f"{shorten(folder)} has weights of the type {dtype}: convert them to one of"
            f" {', '.join(DTYPES)}"
        )
    shapes = {full: stored.shapes[name] for full, name in found.items()}
    params = names.gather(wanted, ours, shapes, lambda full: stored.read(found[full]), folder, put)
    return params, DTYPES[dtypes.pop()] if len(dtypes) == 1 else "float32"


def _specials(content: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The ids of special tokens that a JSON file of the folder names, those that can be."""
    found = {}
    for role in ROLES:
        ids = content.get(f"{role}_token_id")
        several = ids if isinstance(ids, list) else [ids]
        if several and all(type(i) is int and 0 <= i < size for i in several):
            found[role] = ids
    return found
