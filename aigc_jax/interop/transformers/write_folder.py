"""Writes our transformer as a folder that Hugging Face's transformers loads."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from aigc_jax.core.errors import UserError
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.folder_writer import (
    MAX_SHARD_BYTES,
    check_dtype,
    check_shapes,
    new_folder,
    write_json,
    write_safetensors,
)
from aigc_jax.interop.parameters import bind
from aigc_jax.interop.safetensors_folder import WEIGHTS
from aigc_jax.interop.transformers.config_json import choose_architecture, write_config_json
from aigc_jax.interop.transformers.read_folder import ROLES, transformer_shapes

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_hf_folder(
    folder: str,
    model: TransformerConfig,
    params: Mapping[str, Any],
    *,
    dtype: str = "float32",
    tokenizer: Any = None,
    specials: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    architecture: str = "",
) -> str:
    """Writes config.json, the weights and the tokenizer; the folder appears complete or not at all.

    Args:
      folder: may exist if it is empty.
      model: with `vocab_size` and `context` given.
      params: the collection "params" of `Transformer`, adapters merged.
      dtype: of the weights: float32, float16 or bfloat16.
      tokenizer: a `tokenizers.Tokenizer`, or none.
      specials: ids of special tokens by their role (`ROLES`); "eos" may have several.
      generation: more keys for generation_config.json.
      max_shard_bytes: of one file of weights.
      architecture: `model_type` to write; "": the plainest that can hold the model.

    Returns:
      The architecture that was written.

    Raises:
      UserError: if no architecture, or not this one, can hold the model, or the folder is in use.
      StorageError: if it cannot be written.
    """
    specials = {role: _json_ids(ids) for role, ids in (specials or {}).items() if ids is not None}
    check_dtype(dtype)
    if set(specials) - set(ROLES):
        raise UserError(f"special tokens are {', '.join(ROLES)}, not {', '.join(specials)}")
    if not model.vocab_size or not model.context:
        raise UserError("model.vocab_size and model.context must be given")
    arch, fields = choose_architecture(model, architecture)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    check_shapes(leaves, transformer_shapes(model))
    tensors = bind(arch.rules, {path: leaf.shape for path, leaf in leaves.items()}, arch.hf, fields)
    ids = {f"{role}_token_id": specials.get(role) for role in ("bos", "eos", "pad")}
    config = write_config_json(arch, fields, model.dropout) | ids
    config |= dict(dtype=dtype, torch_dtype=dtype, use_cache=model.causal)
    with new_folder(folder) as place:
        write_json(place, "config.json", config)
        if model.causal:
            given = {name: value for name, value in ids.items() if value is not None}
            write_json(place, "generation_config.json", given | dict(generation or {}))
        write_safetensors(
            place, tensors, leaves, dtype=dtype, file=WEIGHTS, max_bytes=max_shard_bytes
        )
        if tokenizer is not None:
            _write_tokenizer(place, tokenizer, specials, model)
    return arch.hf


def _json_ids(ids: Any) -> int | list[int]:
    """Returns ids as Python integers, which JSON can hold."""
    return [int(i) for i in ids] if isinstance(ids, (list, tuple)) else int(ids)


def _write_tokenizer(
    place: str, tokenizer: Any, specials: Mapping[str, Any], model: TransformerConfig
) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(os.path.join(place, "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context,
        "clean_up_tokenization_spaces": False,
    }
    for role, ids in specials.items():
        first = ids[0] if isinstance(ids, list) else ids
        token = tokenizer.id_to_token(first)
        if token is None:
            raise UserError(f"the tokenizer has no token {first}, which should be {role}")
        config[f"{role}_token"] = token
    if tokenizer.token_to_id("<|im_start|>") is not None:
        config["chat_template"] = CHATML
    write_json(place, "tokenizer_config.json", config)
