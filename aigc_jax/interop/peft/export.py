"""Low-rank changes → adapters of Hugging Face's PEFT, or into the weights.

A change of ours is the collection "lora": for a kernel (L, in, out) the factors `lora_a` (L, in, r)
and `lora_b` (L, r, out), of which alpha / r times the product is added. PEFT has them transposed.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from aigc_jax.core.errors import UserError
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.mapping import Architecture, Weight
from aigc_jax.interop.transformers import names, settings
from aigc_jax.interop.transformers.export import appearing, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
JOINT = "aigc_jax.joint"  # which of our kernels share a tensor, in the file's metadata


def _changed(factors: Mapping[str, Any]) -> list[str]:
    """The paths of kernels with a change."""
    return sorted(path.removesuffix("/lora_a") for path in factors if path.endswith("/lora_a"))


def module_of(weight: Weight) -> str:
    return weight.theirs.removesuffix(".weight")


def paths_of(weight: Weight) -> list[str]:
    return [path.removesuffix("/kernel") for path in weight.ours]


def kernels_of(arch: Architecture) -> list[Weight]:
    return [weight for weight in arch.weights if weight.stacked and weight.is_kernel]


def write_adapter(
    folder: str,
    model: TransformerConfig,
    lora: Mapping[str, Any],
    base_model_name: str = "",
    *,
    architecture: str = "",
) -> str:
    """Writes adapter_config.json and adapter_model.safetensors as PEFT loads them.

    Kernels that are one tensor of theirs (GPT-2's query, key and value) become one adapter whose
    factors are blocks.

    Args:
      folder: may exist if it is empty.
      model: with `lora_alpha`; the rank is that of the factors.
      lora: the collection "lora" of `Transformer`.
      base_model_name: where the model that it changes can be found.
      architecture: `model_type` to write; "": the plainest that holds the model.

    Returns:
      The architecture that it is for.

    Raises:
      UserError: if no architecture holds the model, or the folder is in use.
      StorageError: if it cannot be written.
    """
    arch, _ = settings.choose(model, architecture)
    factors = {path: np.asarray(leaf, np.float32) for path, leaf in names.flat(lora).items()}
    changed = _changed(factors)
    if not changed:
        raise UserError("there is no low-rank change to write: model.lora_rank was 0")
    rank = factors[f"{changed[0]}/lora_a"].shape[-1]
    widths = {path: shape[-1] for path, shape in names.shapes(model).items()}
    arrays: dict[str, np.ndarray] = {}
    patterns: dict[str, int] = {}  # how many kernels of ours share a module
    used, metadata = [], {"format": "pt"}
    for weight in kernels_of(arch):
        parts = [path for path in paths_of(weight) if path in changed]
        if not parts:
            continue
        used.append(weight)
        joint = len(weight.ours) > 1
        if joint:
            metadata[JOINT] = " ".join(parts)
        if len(parts) > 1:
            patterns[re.escape(suffix_of(weight))] = len(parts)
        sizes = {path: widths[f"{path}/kernel"] for path in paths_of(weight)}
        for i in range(model.layers):
            a, b = _blocks(factors, parts, sizes, i)
            module = PREFIX + module_of(weight).format(layer=i)
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
        "rank_pattern": {key: n * rank for key, n in patterns.items()},
        "alpha_pattern": {key: n * alpha for key, n in patterns.items()},
        "fan_in_fan_out": not any(weight.transposed for weight in used),
        "bias": "none",
        "inference_mode": True,
    }
    with appearing(folder) as place:
        write_json(place, CONFIG, config)
        save_file(arrays, os.path.join(place, WEIGHTS), metadata=metadata)
    return arch.name


def _blocks(
    factors: Mapping[str, np.ndarray], parts: list[str], sizes: Mapping[str, int], layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's factors of a module: (n r, in) and (out, n r), the second in blocks."""
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


def suffix_of(weight: Weight) -> str:
    """A module's name within its layer."""
    return module_of(weight).split("{layer}.")[1]


def _target_modules(arch: Architecture, used: list[Weight]) -> list[str] | str:
    """The modules' last names if they are enough to tell them from others, or a pattern."""
    wanted = sorted({suffix_of(weight).split(".")[-1] for weight in used})
    modules = {module_of(weight) for weight in arch.weights if weight.theirs.endswith(".weight")}
    lasts = [module.split(".")[-1] for module in modules]
    if all(lasts.count(last) == 1 for last in wanted):
        return wanted
    return rf".*\.\d+\.({'|'.join(sorted(re.escape(suffix_of(weight)) for weight in used))})"
