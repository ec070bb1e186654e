"""Writes LoRA adapters as a folder of Hugging Face's PEFT.

Our adapters are the collection "lora": for a kernel (L, in, out) the factors `lora_a` (L, in, r)
and `lora_b` (L, r, out), whose product times alpha / r is added. PEFT stores them transposed.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from aigc_jax.core.errors import UserError
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.folder_writer import new_folder, write_json
from aigc_jax.interop.mapping import TensorRule
from aigc_jax.interop.transformers.config_json import choose_architecture
from aigc_jax.interop.transformers.read_folder import transformer_shapes
from aigc_jax.interop.transformers.table import Architecture

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
JOINT = "aigc_jax.joint"  # metadata key: kernels of ours that share a tensor


def layer_kernels(arch: Architecture) -> list[TensorRule]:
    """Returns the rules of the kernels in layers, which adapters can be for."""
    return [rule for rule in arch.rules if rule.stacked and rule.is_kernel]


def name_in_layer(rule: TensorRule) -> str:
    """Returns the name of PEFT's module within its layer."""
    return rule.hf_module.split("{layer}.")[1]


def write_peft_folder(
    folder: str,
    model: TransformerConfig,
    lora: Mapping[str, Any],
    base_model_name: str = "",
    *,
    architecture: str = "",
) -> str:
    """Writes adapter_config.json and adapter_model.safetensors as PEFT loads them.

    Kernels that are one tensor there (query, key and value of GPT-2) become one adapter whose
    second factor is block-diagonal.

    Args:
      folder: may exist if it is empty.
      model: with `lora_alpha`; the rank is the factors'.
      lora: the collection "lora" of `Transformer`.
      base_model_name: name or path of the model that it adapts.
      architecture: `model_type` to write; "": the plainest that can hold the model.

    Returns:
      The architecture that it is for.

    Raises:
      UserError: if no architecture can hold the model, or the folder is in use.
      StorageError: if it cannot be written.
    """
    arch, _ = choose_architecture(model, architecture)
    leaves = flatten_dict(lora, sep="/")
    factors = {path: np.asarray(leaf, np.float32) for path, leaf in leaves.items()}
    adapted = sorted(path.removesuffix("/lora_a") for path in factors if path.endswith("/lora_a"))
    if not adapted:
        raise UserError("there is no adapter to write: model.lora_rank was 0")
    rank = factors[f"{adapted[0]}/lora_a"].shape[-1]
    widths = {path: shape[-1] for path, shape in transformer_shapes(model).items()}
    arrays: dict[str, np.ndarray] = {}
    shared: dict[str, int] = {}  # number of adapted kernels of ours in a module of theirs
    used, metadata = [], {"format": "pt"}
    for rule in layer_kernels(arch):
        parts = [path for path in rule.aigc_modules if path in adapted]
        if not parts:
            continue
        used.append(rule)
        if len(rule.aigc) > 1:
            metadata[JOINT] = " ".join(parts)
        if len(parts) > 1:
            shared[re.escape(name_in_layer(rule))] = len(parts)
        sizes = {path: widths[f"{path}/kernel"] for path in rule.aigc_modules}
        for i in range(model.layers):
            a, b = _blocks(factors, parts, sizes, i)
            module = PREFIX + rule.hf_module.format(layer=i)
            arrays[f"{module}.lora_A.weight"] = a
            arrays[f"{module}.lora_B.weight"] = b
    alpha = int(model.lora_alpha) if model.lora_alpha == int(model.lora_alpha) else model.lora_alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if model.causal else None,
        "base_model_name_or_path": base_model_name or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": model.lora_dropout,
        "target_modules": _target_modules(arch, used),
        "rank_pattern": {key: n * rank for key, n in shared.items()},
        "alpha_pattern": {key: n * alpha for key, n in shared.items()},
        "fan_in_fan_out": not any(rule.transposed for rule in used),
        "bias": "none",
        "inference_mode": True,
    }
    with new_folder(folder) as place:
        write_json(place, CONFIG, config)
        save_file(arrays, os.path.join(place, WEIGHTS), metadata=metadata)
    return arch.hf


def _blocks(
    factors: Mapping[str, np.ndarray], parts: list[str], sizes: Mapping[str, int], layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns PEFT's factors of a module: (n r, in), and (out, n r) in blocks."""
    a = np.concatenate([factors[f"{path}/lora_a"][layer].T for path in parts])
    b = np.zeros((sum(sizes.values()), len(a)), np.float32)
    row = column = 0
    for path, size in sizes.items():
        if path in parts:
            block = factors[f"{path}/lora_b"][layer].T
            b[row : row + size, column : column + block.shape[1]] = block
            column += block.shape[1]
        row += size
    return np.ascontiguousarray(a), b


def _target_modules(arch: Architecture, used: list[TensorRule]) -> list[str] | str:
    """Returns the modules' last names if these are unambiguous, otherwise a regular expression."""
    wanted = sorted({name_in_layer(rule).split(".")[-1] for rule in used})
    modules = {rule.hf_module for rule in arch.rules if rule.hf.endswith(".weight")}
    last_names = [module.split(".")[-1] for module in modules]
    if all(last_names.count(name) == 1 for name in wanted):
        return wanted
    return rf".*\.\d+\.({'|'.join(sorted(re.escape(name_in_layer(rule)) for rule in used))})"
