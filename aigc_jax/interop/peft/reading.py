"""Adapters of Hugging Face's PEFT → low-rank changes of our transformer."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import safe_open

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.mapping import Architecture, Weight, words
from aigc_jax.interop.peft.export import (
    CONFIG,
    JOINT,
    PREFIX,
    WEIGHTS,
    kernels_of,
    module_of,
    paths_of,
    suffix_of,
)
from aigc_jax.interop.transformers import names
from aigc_jax.interop.transformers.architectures import ARCHITECTURES
from aigc_jax.interop.weights import DTYPES, PICKLED, Tensors, read_json

# Keys of adapter_config.json without an effect on what a trained adapter computes.
IGNORED = words(
    """
    auto_mapping base_model_name_or_path peft_version task_type inference_mode revision lora_dropout
    fan_in_fan_out target_modules exclude_modules layers_to_transform layers_pattern megatron_config
    megatron_core qalora_group_size loftq_config eva_config runtime_config
    """
)
READ = words("r lora_alpha rank_pattern alpha_pattern use_rslora")
# And those with one, at the values that are supported; any other must be off.
PLAIN = {
    "peft_type": ("LORA",), "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}  # fmt: skip
TARGETS = {
    "attention/query": "query", "attention/key": "key", "attention/value": "value",
    "attention/out": "out", "mlp/gate": "gate", "mlp/in": "in", "mlp/out": "down",
}  # fmt: skip
Factors = tuple[np.ndarray, np.ndarray]  # PEFT's: (r, in) and (out, r)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter from elsewhere.

    Attributes:
      lora: the collection "lora" of `Transformer`, float32.
      rank: `lora_rank`.
      alpha: `lora_alpha`.
      targets: `lora_targets`.
      base: the name or path of the model that it changes, if the file says it.
    """

    lora: dict[str, Any]
    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str


def read_adapter(folder: str, model: TransformerConfig | None = None) -> Adapter:
    """The adapter in a folder that PEFT or `write_adapter` has written.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      model: the model that it is for, if it shall be compared.

    Raises:
      UserError: if it is no such folder, not a plain LoRA of one rank, or not for this model.
    """
    folder = os.path.expanduser(folder)
    where = os.path.join(folder, CONFIG)
    if not os.path.isfile(where):
        raise UserError(f"{shorten(folder)} has no {CONFIG}: is it an adapter's folder?")
    config = read_json(where)
    _check_config(config, shorten(where))
    stored, joint = _open(folder)
    kinds, factors = set(), {}
    for weight, layers in _modules(stored, folder).items():
        if sorted(layers) != list(range(len(layers))):
            raise UserError(
                f"{shorten(folder)} lacks layers of {suffix_of(weight)}: all must be there"
            )
        stacks: dict[str, list[Factors]] = {}
        for _, pair in sorted(layers.items()):
            a, b = _read_pair(stored, pair, folder)
            for path, part in _split(weight, a, b, joint, folder).items():
                stacks.setdefault(path, []).append(part)
        for path, pairs in stacks.items():
            factors[path] = _stacked(pairs, path, folder)
            rank = factors[path][0].shape[-1]
            kinds.add((rank, _alpha(config, weight, len(a), rank, shorten(where))))
    if len(kinds) != 1:
        raise UserError(
            f"{shorten(folder)} changes kernels with different ranks or scales, which is not"
            " supported: merge it with PEFT first"
        )
    if model is not None:
        _check_model(factors, model, folder)
    rank, alpha = kinds.pop()
    base = config.get("base_model_name_or_path")
    leaves = {
        f"{path}/lora_{x}": f for path, ab in factors.items() for x, f in zip("ab", ab, strict=True)
    }
    return Adapter(
        lora=names.nested(leaves),
        rank=rank,
        alpha=alpha,
        targets=tuple(t for path, t in TARGETS.items() if f"layers/{path}" in factors),
        base=base if isinstance(base, str) else "",
    )


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for what is not a plain LoRA."""
    for key, value in config.items():
        plain = PLAIN.get(key, (None, False, {}, []))
        if key not in IGNORED and key not in READ and value not in plain:
            raise UserError(
                f"{where} sets {shorten(key, 60)}={shorten(value, 60)}, which is not supported:"
                " merge"
                " the adapter with PEFT first"
            )
    if config.get("peft_type") != "LORA":
        raise UserError(f"{where} has no peft_type LORA")
    for key in ("r", "lora_alpha"):
        _number(config.get(key), key, where)
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, Mapping):
            raise UserError(f"{where}: {key} must be an object, but it is {shorten(pattern, 60)}")
        for name, value in pattern.items():
            _number(value, key, where)
            if not re.fullmatch(r"[A-Za-z_]+((\\)?\.[A-Za-z_]+)*", name):
                raise UserError(
                    f"{where} sets {key} for {shorten(name, 60)}: only modules of all layers are"
                    " supported"
                )


def _number(value: Any, key: str, where: str) -> None:
    if type(value) not in (int, float) or not 0 < value < 2**31:
        raise UserError(f"{where}: {key} must be positive, but it is {shorten(value, 60)}")


def _open(folder: str) -> tuple[Tensors, list[str]]:
    """The tensors, and which of our kernels share one of theirs if the file says it."""
    path = os.path.join(folder, WEIGHTS)
    if not os.path.exists(path) and any(name.endswith(PICKLED) for name in os.listdir(folder)):
        raise UserError(
            f"{shorten(folder)} has its weights in a pickle, which can run code and is not read:"
            f" convert it to {WEIGHTS}"
        )
    stored = Tensors([path])
    try:
        with safe_open(path, framework="np") as f:
            return stored, (f.metadata() or {}).get(JOINT, "").split()
    except Exception as e:  # the library's own kinds
        raise UserError(f"{shorten(path)} cannot be read: {one_line(e)}") from e


def _modules(stored: Tensors, folder: str) -> dict[Weight, dict[int, dict[str, str]]]:
    """The names of the factors "A" and "B" by kernel and layer.

    Raises:
      UserError: if they are not those of an architecture that is supported.
    """
    if not stored.files:
        raise UserError(f"{shorten(folder)} holds no factors")
    strange = ""
    for arch in ARCHITECTURES.values():
        found: dict[Weight, dict[int, dict[str, str]]] = {}
        for name in stored.files:
            place = _place(name, arch)
            if place is None:
                strange = strange or name
                break
            weight, layer, factor = place
            found.setdefault(weight, {}).setdefault(layer, {})[factor] = name
        else:
            return found
    raise UserError(
        f"{shorten(folder)} has {shorten(strange, 150)}, but only a plain LoRA of the kernels of"
        f" {', '.join(ARCHITECTURES)} is supported"
    )


def _place(name: str, arch: Architecture) -> tuple[Weight, int, str] | None:
    """The kernel, the layer and the factor of a tensor's name; None: it is not of this kind."""
    parts = re.fullmatch(r"(.*)\.lora_([AB])(?:\.default)?\.weight", name.removeprefix(PREFIX))
    if parts is None:
        return None
    for weight in kernels_of(arch):
        pattern = re.escape(module_of(weight)).replace(r"\{layer\}", r"(\d{1,5})")
        for module in (parts[1], arch.prefix + parts[1]):
            match = re.fullmatch(pattern, module)
            if match:
                return weight, int(match[1]), parts[2]
    return None


def _read_pair(stored: Tensors, pair: Mapping[str, str], folder: str) -> Factors:
    """The two factors of a module, float32."""
    if len(pair) < 2:
        raise UserError(
            f"{shorten(folder)} has {shorten(*pair.values(), 150)}, but not its partner"
        )
    for name in pair.values():
        if stored.dtypes[name] not in DTYPES or len(stored.shapes[name]) != 2:
            raise UserError(
                f"{shorten(folder)} has {shorten(name, 150)}, which is no matrix of floats"
            )
    a, b = (stored.read(pair[factor]).astype(np.float32) for factor in "AB")
    if len(a) != b.shape[1] or not len(a):
        raise UserError(
            f"{shorten(folder)}: the ranks of the factors of {shorten(pair['A'], 150)} differ"
        )
    return a, b


def _split(
    weight: Weight, a: np.ndarray, b: np.ndarray, joint: list[str], folder: str
) -> dict[str, Factors]:
    """The factors of each of our kernels that share a module."""
    paths = paths_of(weight)
    if len(paths) == 1:
        return {paths[0]: (a, b)}
    if len(b) % len(paths):
        raise UserError(f"{shorten(folder)}: {suffix_of(weight)} has {len(b)} outputs, not thirds")
    rows = dict(zip(paths, np.split(b, len(paths)), strict=True))
    if not joint:
        return {path: (a, rows[path]) for path in paths}
    rank, rest = divmod(len(a), len(joint))
    if rest or set(joint) - set(paths) or len(set(joint)) < len(joint):
        raise UserError(f"{shorten(folder)} joins {shorten(joint, 100)}, which cannot be")
    split = {}
    for i, path in enumerate(joint):
        block = slice(i * rank, (i + 1) * rank)
        split[path] = (a[block], rows[path][:, block])
    if sum(np.count_nonzero(part) for _, part in split.values()) != np.count_nonzero(b):
        raise UserError(f"{shorten(folder)}: {suffix_of(weight)} is not made of blocks, as it says")
    return split


def _stacked(pairs: list[Factors], path: str, folder: str) -> Factors:
    """Our factors of all layers: (L, in, r) and (L, r, out)."""
    if len({(a.shape, b.shape) for a, b in pairs}) > 1:
        raise UserError(f"{shorten(folder)}: the layers' factors of {path} differ in shape")
    a, b = (np.stack([pair[i].T for pair in pairs]) for i in (0, 1))
    return a, b


def _alpha(config: Mapping[str, Any], weight: Weight, whole: int, rank: int, where: str) -> float:
    """Our alpha of a kernel of this rank, whose module has the rank `whole`."""
    module = "." + module_of(weight).format(layer=0)

    def said(key: str, pattern: str) -> Any:
        for name, value in (config.get(pattern) or {}).items():
            if module.endswith("." + name.replace("\\.", ".")):
                return value
        return config[key]

    if said("r", "rank_pattern") != whole:
        raise UserError(f"{where} says another rank than the {whole} of {module[1:]}")
    alpha = said("lora_alpha", "alpha_pattern")
    return float(alpha * rank / (math.sqrt(whole) if config.get("use_rslora") else whole))


def _check_model(factors: Mapping[str, Factors], model: TransformerConfig, folder: str) -> None:
    ours = names.shapes(model)
    for path, (a, b) in factors.items():
        shape = (len(a), a.shape[1], b.shape[2])
        if ours.get(f"{path}/kernel") != shape:
            raise UserError(
                f"{shorten(folder)} changes {path} of the shape {shape}, but the model's is"
                f" {ours.get(f'{path}/kernel', 'none')}"
            )
