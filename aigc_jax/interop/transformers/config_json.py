"""config.json of transformers ↔ the fields of `TransformerConfig`, by an architecture's table."""

import math
from collections.abc import Mapping
from typing import Any

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.core.fields import check_value
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop import settings
from aigc_jax.interop.mapping import Fields
from aigc_jax.interop.transformers import rope_scaling
from aigc_jax.interop.transformers.architectures import ARCHITECTURES
from aigc_jax.interop.transformers.table import PLAIN, SIZES, Architecture

WINDOW_KEYS = {
    "": (),
    "all": ("sliding_window",),
    "chosen": ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
    "alternating": ("sliding_window", "layer_types"),
}


def find_architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """Returns the architecture that config.json names.

    Raises:
      UserError: if it names none, or one that is not supported.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        hint = (
            did_you_mean(name, ARCHITECTURES) if isinstance(name, str) else "it has no model_type"
        )
        raise UserError(
            f"{where} is of a model_type that is not supported, {shorten(name, 40)!r}: {hint}"
        )
    return ARCHITECTURES[name]


# Reading ------------------------------------------------------------------------------------------


def read_config_json(arch: Architecture, config: Mapping[str, Any], where: str) -> Fields:
    """Returns all fields that decide what the model computes, and its sizes.

    Args:
      arch: its table.
      config: content of config.json.
      where: the file, for messages.

    Raises:
      UserError: if a key is missing, unknown, or has a value that is not supported.
    """
    fields: Fields = PLAIN | settings.read_settings(arch, config, where)
    rope_keys = rope_scaling.KEYS if arch.rope_theta else ()
    settings.check_keys(arch, config, where, (*WINDOW_KEYS[arch.windows], *rope_keys))
    fields["kv_heads"] = fields.get("kv_heads") or fields["heads"]
    fields["head_dim"] = fields.get("head_dim") or fields["width"] // max(fields["heads"], 1)
    fields["mlp_width"] = fields["mlp_width"] or 4 * fields["width"]
    settings.check_limits(arch, fields, where)
    for name in SIZES:
        if not fields[name] > 0:
            raise UserError(f"{where} sets {name} to {fields[name]}: it must be positive")
    if arch.rope_theta:
        fields |= rope_scaling.read_rope(config, arch.rope_theta, fields["context"], where)
    fields |= _read_windows(arch, config, fields["layers"], where)
    if arch.head:
        fields |= dict(head_transform=True, head_bias=True)
    for name, of in arch.derived.items():
        fields[name] = of(fields)
    return {
        name: settings.checked_value(name, value, TransformerConfig, where)
        for name, value in fields.items()
    }


def _read_windows(
    arch: Architecture, config: Mapping[str, Any], layers: int, where: str
) -> dict[str, int]:
    """Returns `sliding_window` and `full_attention_every`, from the layers with a window."""
    size, first = config.get("sliding_window", 4096) if arch.windows else None, 0
    if arch.windows == "chosen":
        on = config.get("use_sliding_window", False)
        size = size if check_value(bool, on, f"{where}: use_sliding_window") else None
        last = config.get("max_window_layers", 28)
        first = check_value(int, last, f"{where}: max_window_layers")
    if size is not None:
        size = settings.checked_value("sliding_window", size, TransformerConfig, where)
    sliding = [i >= first and (arch.windows != "alternating" or i % 2 == 0) for i in range(layers)]
    kinds = config.get("layer_types") if "layer_types" in WINDOW_KEYS[arch.windows] else None
    if kinds is not None:
        known = isinstance(kinds, list) and all(kind in rope_scaling.LAYER_TYPES for kind in kinds)
        if not known or len(kinds) != layers:
            raise UserError(
                f"{where}: layer_types must name full_attention or sliding_attention for each of"
                f" {layers} layers"
            )
        sliding = [kind == "sliding_attention" for kind in kinds]
    if not size or not any(sliding):
        return dict(sliding_window=0, full_attention_every=0)
    every = sliding.index(False) + 1 if False in sliding else 0
    if sliding != [not every or (i + 1) % every != 0 for i in range(layers)]:
        raise UserError(
            f"{where}: the layers with full attention are not every second, third or n-th, which"
            " is all that is supported"
        )
    return dict(sliding_window=size, full_attention_every=every)


# Writing ------------------------------------------------------------------------------------------


def resolved_fields(config: TransformerConfig) -> Fields:
    """Returns the fields with dependent defaults worked out, and those without effect reset."""
    fields = {name: getattr(config, name) for name in (*PLAIN, *SIZES)}
    fields |= dict(kv_heads=config.key_heads, head_dim=config.head_size, mlp_width=config.hidden)
    unused: set[str] = set()
    if config.positions != "rotary":
        unused |= {name for name in PLAIN if name.startswith("rope_")}
    else:
        kind = config.rope_scaling if config.rope_scaling != "none" else "default"
        used = {"rope_theta", "rope_scaling", *rope_scaling.KINDS[kind].values()}
        unused |= {name for name in PLAIN if name.startswith("rope_")} - used
    if config.norm == "rmsnorm":
        unused |= {"norm_bias"}
    if not any(config.windows()):
        unused |= {"sliding_window", "full_attention_every"}
    elif all(config.windows()):
        unused |= {"full_attention_every"}
    if math.isclose(config.attention_scale, config.head_size**-0.5, rel_tol=1e-9):
        unused |= {"attention_scale"}
    return fields | {name: PLAIN[name] for name in unused}


def choose_architecture(config: TransformerConfig, name: str = "") -> tuple[Architecture, Fields]:
    """Returns the architecture for a model, and the model's fields.

    Args:
      config: of the model.
      name: `model_type`; "": the plainest that can hold the model.

    Raises:
      UserError: if it cannot hold the model; it says what keeps the model from the nearest.
    """
    fields = resolved_fields(config)
    if name:
        arch = find_architecture({"model_type": name}, "the folder to write")
        lacking = incompatibilities(arch, fields)
        if lacking:
            raise UserError(f"{name} does not fit this model: it needs {' and '.join(lacking)}")
        return arch, fields
    lacks = {arch.hf: incompatibilities(arch, fields) for arch in ARCHITECTURES.values()}
    name = min(lacks, key=lambda name: len(lacks[name]))
    if lacks[name]:
        raise UserError(
            f"no architecture of transformers fits this model: the nearest, {name}, needs"
            f" {' and '.join(lacks[name])}"
        )
    return ARCHITECTURES[name], fields


def incompatibilities(arch: Architecture, fields: Fields) -> list[str]:
    """Lists what the architecture needs of a model and does not get, for "it needs …"."""
    free = set() if not arch.rope_theta else {n for n in PLAIN if n.startswith("rope_")}
    free |= {"sliding_window", "full_attention_every"} if arch.windows else set()
    free |= {"head_transform"} if arch.head else set()
    found = settings.incompatibilities(arch, fields, wanted=PLAIN, free=free)
    if arch.windows == "all" and fields["full_attention_every"]:
        found.append("model.full_attention_every=0")
    return found


def write_config_json(arch: Architecture, fields: Fields, dropout: float = 0.0) -> dict[str, Any]:
    """Returns the keys of config.json that say what a model computes, and its dropout."""
    config = {"model_type": arch.hf} | settings.write_settings(arch, fields)
    headless = arch.head and not fields["head_transform"]
    config["architectures"] = [arch.headless if headless else arch.model]
    config |= rope_scaling.write_rope(fields) if arch.rope_theta else {}
    config |= dict.fromkeys(arch.dropouts, dropout)
    if not arch.windows:
        return config
    every, size = fields["full_attention_every"], fields["sliding_window"]
    config["sliding_window"] = size or None
    if arch.windows == "chosen":
        config |= dict(use_sliding_window=bool(size), max_window_layers=0)
    if arch.windows != "all":
        config["layer_types"] = [
            rope_scaling.LAYER_TYPES[bool(size) and not (every and (i + 1) % every == 0)]
            for i in range(fields["layers"])
        ]
    return config
