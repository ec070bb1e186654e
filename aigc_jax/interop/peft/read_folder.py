"""Reads a folder of Hugging Face's PEFT: LoRA adapters of our transformer."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.mapping import TensorRule, words
from aigc_jax.interop.peft.write_folder import (
    CONFIG,
    JOINT,
    PREFIX,
    WEIGHTS,
    layer_kernels,
    name_in_layer,
)
from aigc_jax.interop.safetensors_folder import DTYPES, PICKLED, StoredTensors, read_json
from aigc_jax.interop.transformers.architectures import ARCHITECTURES
from aigc_jax.interop.transformers.read_folder import transformer_shapes
from aigc_jax.interop.transformers.table import Architecture

# Keys of adapter_config.json without an effect on the output of a trained adapter.
IGNORED = words(
    """
    auto_mapping base_model_name_or_path peft_version task_type inference_mode revision lora_dropout
    fan_in_fan_out target_modules exclude_modules layers_to_transform layers_pattern megatron_config
    megatron_core qalora_group_size loftq_config eva_config runtime_config
    """
)
READ = words("r lora_alpha rank_pattern alpha_pattern use_rslora")
# Keys with an effect, at the values that are supported; any other key must be off.
SUPPORTED: Mapping[str, Sequence[Any]] = {
    "peft_type": ("LORA",), "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}  # fmt: skip
TARGETS = {
    "attention/query": "query", "attention/key": "key", "attention/value": "value",
    "attention/out": "out", "mlp/gate": "gate", "mlp/in": "in", "mlp/out": "down",
}  # fmt: skip
Factors = tuple[np.ndarray, np.ndarray]  # PEFT's: (r, in) and (out, r)


@dataclasses.dataclass(frozen=True)
class ImportedAdapter:
    """LoRA adapters of another library.

    Attributes:
      lora: the collection "lora" of `Transformer`, float32.
      rank: `lora_rank`.
      alpha: `lora_alpha`.
      targets: `lora_targets`.
      base: name or path of the model that it adapts, if the file says it; else "".
      architectures: values of `model_type` that have modules of these names.
    """

    lora: dict[str, Any]
    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str
    architectures: tuple[str, ...]

    def check_base(self, model: TransformerConfig, folder: str) -> None:
        """Compares the shapes of the adapters with those of a model.

        Args:
          model: that they are to adapt.
          folder: of the adapters, for messages.

        Raises:
          UserError: if they are for another model.
        """
        shapes, factors = transformer_shapes(model), flatten_dict(self.lora, sep="/")
        for path in sorted({path.rpartition("/")[0] for path in factors}):
            a, b = factors[f"{path}/lora_a"], factors[f"{path}/lora_b"]
            shape = (len(a), a.shape[1], b.shape[2])
            expected = shapes.get(f"{path}/kernel", "none")
            if expected != shape:
                raise UserError(
                    f"{shorten(folder)} adapts {path} of the shape {shape}, but the base's is"
                    f" {expected}"
                )


def read_peft_folder(folder: str, model: TransformerConfig | None = None) -> ImportedAdapter:
    """Reads the adapter in a folder that PEFT or `write_peft_folder` has written.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      model: that it adapts, to check its shapes; None: they are not checked.

    Raises:
      UserError: if the folder is incomplete, or not a plain LoRA of one rank for this model.
    """
    folder = os.path.expanduser(folder)
    where = os.path.join(folder, CONFIG)
    if not os.path.isfile(where):
        raise UserError(f"{shorten(folder)} has no {CONFIG}: is it an adapter's folder?")
    config = read_json(where)
    _check_config(config, shorten(where))
    stored, joint = _open(folder)
    kinds, factors = set(), {}
    modules, architectures = _find_modules(stored, folder)
    for rule, layers in modules.items():
        if sorted(layers) != list(range(len(layers))):
            raise UserError(
                f"{shorten(folder)} lacks layers of {name_in_layer(rule)}: all must be there"
            )
        stacks: dict[str, list[Factors]] = {}
        for _, pair in sorted(layers.items()):
            a, b = _read_pair(stored, pair, folder)
            for path, part in _split(rule, a, b, joint, folder).items():
                stacks.setdefault(path, []).append(part)
        for path, pairs in stacks.items():
            factors[path] = _stacked(pairs, path, folder)
            rank = factors[path][0].shape[-1]
            kinds.add((rank, _alpha(config, rule, len(a), rank, shorten(where))))
    if len(kinds) != 1:
        raise UserError(
            f"{shorten(folder)} changes kernels with different ranks or scales, which is not"
            " supported: merge it with PEFT first"
        )
    rank, alpha = kinds.pop()
    base = config.get("base_model_name_or_path")
    leaves = {
        f"{path}/lora_{x}": f for path, ab in factors.items() for x, f in zip("ab", ab, strict=True)
    }
    adapter = ImportedAdapter(
        lora=unflatten_dict(leaves, sep="/"),
        rank=rank,
        alpha=alpha,
        targets=tuple(t for path, t in TARGETS.items() if f"layers/{path}" in factors),
        base=base if isinstance(base, str) else "",
        architectures=architectures,
    )
    if model is not None:
        adapter.check_base(model, folder)
    return adapter


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for what is not a plain LoRA."""
    for key, value in config.items():
        allowed: Sequence[Any] = SUPPORTED.get(key, (None, False, {}, []))
        if key not in IGNORED and key not in READ and value not in allowed:
            raise UserError(
                f"{where} sets {shorten(key, 60)}={shorten(value, 60)}, which is not supported:"
                " merge the adapter with PEFT first"
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


def _open(folder: str) -> tuple[StoredTensors, list[str]]:
    """Returns the tensors, and the kernels of ours that share one, if the file says it."""
    path = os.path.join(folder, WEIGHTS)
    if not os.path.exists(path) and any(name.endswith(PICKLED) for name in os.listdir(folder)):
        raise UserError(
            f"{shorten(folder)} has its weights in a pickle, which can run code and is not read:"
            f" convert it to {WEIGHTS}"
        )
    stored = StoredTensors([path])
    try:
        with safe_open(path, framework="np") as f:
            return stored, (f.metadata() or {}).get(JOINT, "").split()
    except Exception as e:  # the library's own kinds
        raise UserError(f"{shorten(path)} cannot be read: {one_line(e)}") from e


Modules = dict[TensorRule, dict[int, dict[str, str]]]


def _find_modules(stored: StoredTensors, folder: str) -> tuple[Modules, tuple[str, ...]]:
    """Returns names of the factors "A" and "B" by kernel and layer, and the architectures.

    Raises:
      UserError: if no supported architecture has them.
    """
    if not stored.files:
        raise UserError(f"{shorten(folder)} has no factors")
    candidates: dict[str, Modules] = {}
    unknown = ""
    for arch in ARCHITECTURES.values():
        found: Modules = {}
        for name in stored.files:
            place = _place(name, arch)
            if place is None:
                unknown = unknown or name
                break
            rule, layer, factor = place
            found.setdefault(rule, {}).setdefault(layer, {})[factor] = name
        else:
            candidates[arch.hf] = found
    if not candidates:
        raise UserError(
            f"{shorten(folder)} has {shorten(unknown, 150)}, but only a plain LoRA of the kernels"
            f" of {', '.join(ARCHITECTURES)} is supported"
        )
    return next(iter(candidates.values())), tuple(candidates)


def _place(name: str, arch: Architecture) -> tuple[TensorRule, int, str] | None:
    """Returns kernel, layer and factor of a tensor's name; None: the architecture has no such."""
    parts = re.fullmatch(r"(.*)\.lora_([AB])(?:\.default)?\.weight", name.removeprefix(PREFIX))
    if parts is None:
        return None
    for rule in layer_kernels(arch):
        pattern = re.escape(rule.hf_module).replace(r"\{layer\}", r"(\d{1,5})")
        for module in (parts[1], arch.prefix + parts[1]):
            match = re.fullmatch(pattern, module)
            if match:
                return rule, int(match[1]), parts[2]
    return None


def _read_pair(stored: StoredTensors, pair: Mapping[str, str], folder: str) -> Factors:
    """Returns the two factors of a module, float32."""
    if len(pair) < 2:
        raise UserError(
            f"{shorten(folder)} has {shorten(next(iter(pair.values())), 150)}, but not its"
            " other factor"
        )
    for name in pair.values():
        if stored.dtypes[name] not in DTYPES or len(stored.shapes[name]) != 2:
            raise UserError(
                f"{shorten(folder)} has {shorten(name, 150)}, which is not a matrix of floats"
            )
    a, b = (stored.read(pair[factor]).astype(np.float32) for factor in "AB")
    if len(a) != b.shape[1] or not len(a):
        raise UserError(
            f"{shorten(folder)}: the ranks of the factors of {shorten(pair['A'], 150)} differ"
        )
    return a, b


def _split(
    rule: TensorRule, a: np.ndarray, b: np.ndarray, joint: list[str], folder: str
) -> dict[str, Factors]:
    """Returns the factors of each of our kernels that share a module."""
    paths = rule.aigc_modules
    if len(paths) == 1:
        return {paths[0]: (a, b)}
    if len(b) % len(paths):
        raise UserError(
            f"{shorten(folder)}: {name_in_layer(rule)} has {len(b)} outputs, which do not"
            " divide by 3"
        )
    rows = dict(zip(paths, np.split(b, len(paths)), strict=True))
    if not joint:
        return {path: (a, rows[path]) for path in paths}
    rank, rest = divmod(len(a), len(joint))
    if rest or set(joint) - set(paths) or len(set(joint)) < len(joint):
        raise UserError(f"{shorten(folder)} joins {shorten(joint, 100)}, which is inconsistent")
    split = {}
    for i, path in enumerate(joint):
        block = slice(i * rank, (i + 1) * rank)
        split[path] = (a[block], rows[path][:, block])
    if sum(np.count_nonzero(part) for _, part in split.values()) != np.count_nonzero(b):
        raise UserError(
            f"{shorten(folder)}: {name_in_layer(rule)} is not block-diagonal, as its metadata says"
        )
    return split


def _stacked(pairs: list[Factors], path: str, folder: str) -> Factors:
    """Returns our factors of all layers: (L, in, r) and (L, r, out)."""
    if len({(a.shape, b.shape) for a, b in pairs}) > 1:
        raise UserError(f"{shorten(folder)}: the layers' factors of {path} differ in shape")
    a, b = (np.stack([pair[i].T for pair in pairs]) for i in (0, 1))
    return a, b


def _alpha(
    config: Mapping[str, Any], rule: TensorRule, module_rank: int, rank: int, where: str
) -> float:
    """Returns our alpha of a kernel of this rank in a module of PEFT of the rank `module_rank`."""
    module = "." + rule.hf_module.format(layer=0)

    def config_value(key: str, pattern: str) -> Any:
        for name, value in (config.get(pattern) or {}).items():
            if module.endswith("." + name.replace("\\.", ".")):
                return value
        return config[key]

    if config_value("r", "rank_pattern") != module_rank:
        raise UserError(f"{where} gives {module[1:]} another rank than its factors, {module_rank}")
    alpha = config_value("lora_alpha", "alpha_pattern")
    return float(
        alpha * rank / (math.sqrt(module_rank) if config.get("use_rslora") else module_rank)
    )
