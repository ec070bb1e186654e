"""Reads a folder of Hugging Face's transformers: fields and parameters of our transformer."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.interop import settings
from aigc_jax.interop.parameters import Shape, bind, parameter_shapes
from aigc_jax.interop.safetensors_folder import (
    StoredTensors,
    canonical_names,
    import_folder,
    open_safetensors_folder,
    read_json,
    refuse_unknown,
)
from aigc_jax.interop.transformers.config_json import find_architecture, read_config_json
from aigc_jax.interop.transformers.table import Architecture

HEADS = ("lm_head.", "cls.")  # names of the head's tensors, which never have the prefix
ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")  # of special tokens


@dataclasses.dataclass(frozen=True)
class ImportedText:
    """A text model of another library.

    Attributes:
      model: fields of `TransformerConfig`, `vocab_size` and `context` among them.
      params: the collection "params" of `Transformer`, float32.
      architecture: `model_type`.
      dtype: of the weights as they were stored.
      generation: content of generation_config.json.
      specials: ids of special tokens by their role (`ROLES`); "eos" may have several.
      notes: one sentence each, for the person who converts it.
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


def transformer_shapes(config: TransformerConfig) -> dict[str, Shape]:
    """Returns the shapes of a transformer's parameters by path, without LoRA.

    Args:
      config: with `vocab_size` and `context` given.
    """
    return dict(_transformer_shapes(dataclasses.replace(config, lora_rank=0)))


@functools.lru_cache(maxsize=8)
def _transformer_shapes(config: TransformerConfig) -> tuple[tuple[str, Shape], ...]:
    model = Transformer(config, config.vocab_size, config.context)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return tuple(parameter_shapes(model.init, tokens).items())


def read_hf_folder(folder: str) -> ImportedText:
    """Reads the model in a folder with config.json and safetensors files.

    At its peak it takes the memory of the float32 model and one tensor.

    Raises:
      UserError: if the folder is incomplete, or its architecture, a setting or a tensor is not
        supported.
    """
    folder = os.path.expanduser(folder)
    where = os.path.join(folder, "config.json")
    if not os.path.isfile(where):
        raise UserError(f"{shorten(folder)} has no config.json: is it a model's folder?")
    config = read_json(where)
    arch = find_architecture(config, shorten(where))
    fields = read_config_json(arch, config, shorten(where))
    stored = open_safetensors_folder(folder)
    found = canonical_names(stored, functools.partial(_canonical_name, arch), arch.buffers, folder)
    notes = []
    if arch.head and not any(name.startswith(arch.head) for name in found):
        fields |= dict(head_transform=False, head_bias=False)
        notes.append("it has no head for masked tokens: only its hidden states are of use")
    shapes = transformer_shapes(settings.make_config(arch, fields, shorten(where)))
    tensors = bind(arch.rules, shapes, arch.hf, fields)
    if fields["tie_embeddings"]:
        _drop_copies(found, arch, stored)
    notes += _drop_unread(found, arch)
    refuse_unknown(found, tensors, arch.hf, folder)
    params, dtype = import_folder(tensors, shapes, stored, found, folder)
    generation, path = {}, os.path.join(folder, "generation_config.json")
    if os.path.exists(path):
        generation = read_json(path)
    return ImportedText(
        model=fields,
        params=params,
        architecture=arch.hf,
        dtype=dtype,
        generation=generation,
        specials=_specials(config, fields["vocab_size"])
        | _specials(generation, fields["vocab_size"]),
        notes=tuple(notes),
    )


def _canonical_name(arch: Architecture, name: str) -> str:
    """Adds the prefix that some files lack, and replaces old endings."""
    full = name if name.startswith((arch.prefix, *HEADS)) else arch.prefix + name
    for old, new in arch.renamed.items():
        full = re.sub(rf"{old}$", new, full)
    return full


def _drop_copies(found: dict[str, str], arch: Architecture, stored: StoredTensors) -> None:
    """Drops one of two tensors that are tied; UserError if they differ."""
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


def _drop_unread(found: dict[str, str], arch: Architecture) -> list[str]:
    """Drops tensors that language modelling does not use; returns a note on each group."""
    notes = []
    for pattern, what in arch.unread:
        names = [name for name in found if re.fullmatch(pattern, name)]
        for name in names:
            del found[name]
        if names:
            notes.append(f"{what} is left out: language modelling does not use it")
    return notes


def _specials(content: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Returns the valid ids of special tokens that a JSON file of the folder names."""
    found = {}
    for role in ROLES:
        ids = content.get(f"{role}_token_id")
        several = ids if isinstance(ids, list) else [ids]
        if several and all(type(i) is int and 0 <= i < size for i in several):
            found[role] = ids
    return found
