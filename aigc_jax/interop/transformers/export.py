"""Our transformer → a folder that Hugging Face's transformers loads."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from aigc_jax.core.errors import StorageError, UserError, one_line, shorten
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.transformers import names, settings
from aigc_jax.interop.transformers.folder import ROLES
from aigc_jax.interop.weights import INDEX_SUFFIX, WEIGHTS

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_folder(
    folder: str,
    model: TransformerConfig,
    params: Mapping[str, Any],
    *,
    dtype: str = "float32",
    tokenizer: Any = None,
    specials: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    architecture: str = "",
) -> str:
    """Writes config.json, the weights and the tokenizer; the folder appears whole or not at all.

    Args:
      folder: may exist if it is empty.
      model: with `vocab_size` and `context` given.
      params: the collection "params" of `Transformer`, low-rank changes merged.
      dtype: of the weights: float32, float16 or bfloat16.
      tokenizer: a `tokenizers.Tokenizer`, or none.
      specials: ids of special tokens by their role (`folder.ROLES`); "eos" may have several.
      generation: more keys for generation_config.json.
      max_shard_bytes: of one file of weights.
      architecture: `model_type` to write; "": the plainest that holds the model.

    Returns:
      The architecture that was written.

    Raises:
      UserError: if no architecture, or not this one, holds the model, or the folder is in use.
      StorageError: if it cannot be written.
    """
    specials = {role: _plain(ids) for role, ids in (specials or {}).items() if ids is not None}
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, but it is {dtype}")
    if set(specials) - set(ROLES):
        raise UserError(f"special tokens are {', '.join(ROLES)}, not {', '.join(specials)}")
    if not model.vocab_size or not model.context:
        raise UserError("model.vocab_size and model.context must be given")
    arch, fields = settings.choose(model, architecture)
    leaves = {path: np.asarray(leaf) for path, leaf in names.flat(params).items()}
    ours = {path: leaf.shape for path, leaf in leaves.items()}
    wanted = names.shapes(model)
    for path in sorted(ours.keys() | wanted.keys()):
        if ours.get(path) != wanted.get(path):
            raise UserError(
                f"the parameter {path} is of the shape {ours.get(path, 'none')}, but the model's is"
                f" {wanted.get(path, 'none')}"
            )
    tensors = names.tensors(arch, ours)
    ids = {f"{role}_token_id": specials.get(role) for role in ("bos", "eos", "pad")}
    config = settings.write_settings(arch, fields, model.dropout) | ids
    config |= dict(dtype=dtype, torch_dtype=dtype, use_cache=model.causal)
    with appearing(folder) as place:
        write_json(place, "config.json", config)
        if model.causal:
            given = {name: value for name, value in ids.items() if value is not None}
            write_json(place, "generation_config.json", given | dict(generation or {}))
        write_weights(place, tensors, leaves, dtype, max_shard_bytes)
        if tokenizer is not None:
            _write_tokenizer(place, tokenizer, specials, model)
    return arch.name


@contextlib.contextmanager
def appearing(folder: str) -> Iterator[str]:
    """A temporary folder that becomes `folder` once the block has ended well.

    Raises:
      UserError: if the folder exists and is not empty.
      StorageError: if it cannot be written.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    temporary = None
    try:
        if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
            raise UserError(f"{shorten(folder)} exists and is not an empty folder: name another")
        above = os.path.dirname(folder)
        os.makedirs(above, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{os.path.basename(folder)}.", dir=above)
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp keeps others out
        yield temporary
        os.rename(temporary, folder)
        temporary = None
    except OSError as e:
        raise StorageError(f"{shorten(folder)} cannot be written: {one_line(e)}") from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _plain(ids: Any) -> int | list[int]:
    """Ids that JSON can hold."""
    return [int(i) for i in ids] if isinstance(ids, (list, tuple)) else int(ids)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(place: str, name: str, content: Mapping[str, Any]) -> None:
    with open(os.path.join(place, name), "w", encoding="utf-8") as f:
        json.dump(content, f, indent=2, sort_keys=True, ensure_ascii=False)
        f.write("\n")


def write_weights(
    place: str,
    tensors: Sequence[Any],
    leaves: Mapping[str, Any],
    dtype: str,
    max_bytes: int,
    file: str = WEIGHTS,
    read: Callable[[Any, Mapping[str, Any]], np.ndarray] = names.read,
) -> None:
    """One file of weights, or several and their index; one is in memory at a time.

    Args:
      place: the folder.
      tensors: theirs, each with `name` and `shape`.
      leaves: our parameters by path.
      dtype: of the weights.
      max_bytes: of one file.
      file: its name, if it is one.
      read: their tensor from our parameters.
    """
    item = np.dtype(DTYPES[dtype]).itemsize
    shards: list[list[Any]] = [[]]
    room = max_bytes
    for tensor in tensors:
        size = math.prod(tensor.shape) * item
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(tensor)
        room -= size
    total, places, stem = 0, {}, file.removesuffix(".safetensors")
    for i, shard in enumerate(shards, 1):
        part = f"{stem}-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else file
        arrays = {tensor.name: _cast(tensor.name, read(tensor, leaves), dtype) for tensor in shard}
        total += sum(array.nbytes for array in arrays.values())
        places |= dict.fromkeys(arrays, part)
        save_file(arrays, os.path.join(place, part), metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(place, f"{file}{INDEX_SUFFIX}", index)


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor in the type of the file; UserError if a weight is too large for it."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array.astype(DTYPES[dtype]))
    if dtype == "float16" and np.isinf(cast).any() and not np.isinf(array).any():
        raise UserError(f"{name} has weights too large for float16: write bfloat16")
    return cast


def _write_tokenizer(
    place: str, tokenizer: Any, specials: Mapping[str, Any], model: TransformerConfig
) -> None:
    """tokenizer.json, and what transformers must know beside it."""
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
            raise UserError(f"the tokenizer has no token {first}, which is to be {role}")
        config[f"{role}_token"] = token
    if tokenizer.token_to_id("<|im_start|>") is not None:
        config["chat_template"] = CHATML
    write_json(place, "tokenizer_config.json", config)
