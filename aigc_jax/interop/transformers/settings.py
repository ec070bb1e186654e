"""config.json ↔ the fields of `TransformerConfig`, by an architecture's table.

Nothing in config.json is passed over unless it is known to leave what the model computes alone.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.core.fields import check_range, check_value
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.mapping import (
    HARMLESS,
    IGNORED,
    PLAIN,
    REQUIRED,
    SIZES,
    Architecture,
    Setting,
)
from aigc_jax.interop.transformers import rope_scaling
from aigc_jax.interop.transformers.architectures import ARCHITECTURES

FIELDS = {field.name: field for field in dataclasses.fields(TransformerConfig)}
WINDOW_KEYS = {
    "": (),
    "all": ("sliding_window",),
    "chosen": ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
    "alternating": ("sliding_window", "layer_types"),
}
# Far beyond any model; what a file claims takes memory before its tensors are compared with it.
LARGEST = dict(
    layers=10_000, width=2**20, heads=2**16, kv_heads=2**16, head_dim=2**16, mlp_width=2**24,
    vocab_size=2**26, context=2**31 - 1,
)  # fmt: skip
Fields = dict[str, Any]


def architecture_of(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture that config.json names.

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


def read_settings(arch: Architecture, config: Mapping[str, Any], where: str) -> Fields:
    """All fields that decide what the model computes, and its sizes.

    Raises:
      UserError: if the file lacks one, has one that is not supported, or one that we do not know.
    """
    fields = PLAIN | dict(arch.ours)
    for row in arch.settings:
        for ours in row.ours:
            fields[ours] = read_row(row, config, ours, where)
    _check_keys(arch, config, where)
    fields["kv_heads"] = fields.get("kv_heads") or fields["heads"]
    fields["head_dim"] = fields.get("head_dim") or fields["width"] // fields["heads"]
    fields["mlp_width"] = fields["mlp_width"] or 4 * fields["width"]
    for name, most in LARGEST.items():
        if not 0 < fields[name] <= most:
            raise UserError(f"{where} describes a model with {name} {fields[name]}: none has that")
    if arch.rope_theta:
        fields |= rope_scaling.read_rope(config, arch.rope_theta, fields["context"], where)
    fields |= _read_windows(arch, config, fields["layers"], where)
    if arch.head:
        fields |= dict(head_transform=True, head_bias=True)
    for name, of in arch.derived.items():
        fields[name] = of(fields)
    return {name: _checked(name, value, where) for name, value in fields.items()}


def config_of(fields: Mapping[str, Any], where: str) -> TransformerConfig:
    """The config with these fields; UserError if they do not go together."""
    try:
        return TransformerConfig(**fields)
    except UserError as e:
        raise UserError(f"{where} describes what cannot be: {e}") from e


def read_row(
    row: Setting, config: Mapping[str, Any], ours: str, where: str, of: type = TransformerConfig
) -> Any:
    """What one of a row's fields is, in a config of the dataclass `of`.

    Raises:
      UserError: if config.json lacks it, or has a value that cannot be.
    """
    value = config.get(row.theirs, row.default)
    if value is REQUIRED:
        raise UserError(f"{where} lacks {row.theirs}")
    if value is None and row.null is not REQUIRED:
        return row.null
    if row.values:
        for theirs, meant in row.values:
            if type(theirs) is type(value) and theirs == value:
                return meant
        known = ", ".join(dict.fromkeys(str(theirs) for theirs, _ in row.values))
        raise UserError(f"{where} sets {row.theirs}={shorten(value, 60)}, but only {known} will do")
    if row.read is not None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise UserError(
                f"{where}: {row.theirs} must be positive, but it is {shorten(value, 60)}"
            )
        return row.read(value)
    return _checked(ours, value, where, row.theirs, of)


def _checked(
    ours: str, value: Any, where: str, theirs: str = "", of: type = TransformerConfig
) -> Any:
    """`value`, of the type and in the range of the field."""
    name = f"{where}: {theirs or ours}"
    value = check_value(typing.get_type_hints(of)[ours], value, name)
    check_range(of.__dataclass_fields__[ours], value, name)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be finite, but it is {value}")
    return value


def _check_keys(arch: Architecture, config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a key that is unknown, or has a value that is not supported."""
    read = {row.theirs for row in arch.settings} | set(WINDOW_KEYS[arch.windows])
    read |= set(rope_scaling.KEYS) if arch.rope_theta else set()
    allowed = dict(HARMLESS) | dict(arch.theirs)
    for key, value in config.items():
        if key in read or key in IGNORED or key in arch.ignored:
            continue
        if key in allowed:
            if value not in allowed[key]:
                raise UserError(
                    f"{where} sets {key}={shorten(value, 60)}, which is not supported for"
                    f" {arch.name}"
                )
        elif value is not None:
            raise UserError(
                f"{where} sets {shorten(key, 60)}={shorten(value, 60)}, which is unknown for"
                f" {arch.name} and may change what it computes: remove it if it does not"
            )


def _read_windows(
    arch: Architecture, config: Mapping[str, Any], layers: int, where: str
) -> dict[str, int]:
    """`sliding_window` and `full_attention_every`, from how many positions each layer sees."""
    size, first = config.get("sliding_window", 4096) if arch.windows else None, 0
    if arch.windows == "chosen":
        on = config.get("use_sliding_window", False)
        size = size if check_value(bool, on, f"{where}: use_sliding_window") else None
        last = config.get("max_window_layers", 28)
        first = check_value(int, last, f"{where}: max_window_layers")
    size = 0 if size is None else _checked("sliding_window", size, where, "sliding_window")
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
            f"{where}: the layers without a window are not every second, third or so, which is all"
            " that is supported"
        )
    return dict(sliding_window=size, full_attention_every=every)


# Writing ------------------------------------------------------------------------------------------


def resolved(config: TransformerConfig) -> Fields:
    """The fields of a config, defaults that depend on others worked out, idle ones at rest."""
    fields = {name: getattr(config, name) for name in (*PLAIN, *SIZES)}
    fields |= dict(kv_heads=config.key_heads, head_dim=config.head_size, mlp_width=config.hidden)
    idle = set()
    if config.positions != "rotary":
        idle |= {name for name in PLAIN if name.startswith("rope_")}
    else:
        kind = config.rope_scaling if config.rope_scaling != "none" else "default"
        used = {"rope_theta", "rope_scaling", *rope_scaling.KINDS[kind].values()}
        idle |= {name for name in PLAIN if name.startswith("rope_")} - used
    if config.norm == "rmsnorm":
        idle |= {"norm_bias"}
    if not any(config.windows()):
        idle |= {"sliding_window", "full_attention_every"}
    elif all(config.windows()):
        idle |= {"full_attention_every"}
    if math.isclose(config.attention_scale, config.head_size**-0.5, rel_tol=1e-9):
        idle |= {"attention_scale"}
    return fields | {name: PLAIN[name] for name in idle}


def choose(config: TransformerConfig, name: str = "") -> tuple[Architecture, Fields]:
    """The named architecture, or the plainest that holds the model; and the model's fields.

    Raises:
      UserError: if it does not hold the model; it says what keeps the model from the nearest.
    """
    fields = resolved(config)
    if name:
        arch = architecture_of({"model_type": name}, "the folder to write")
        lacking = incompatibilities(arch, fields)
        if lacking:
            raise UserError(f"{name} does not fit this model: it needs {' and '.join(lacking)}")
        return arch, fields
    lacks = {arch.name: incompatibilities(arch, fields) for arch in ARCHITECTURES.values()}
    name = min(lacks, key=lambda name: len(lacks[name]))
    if lacks[name]:
        raise UserError(
            f"no architecture of transformers fits this model: the nearest, {name}, needs"
            f" {' and '.join(lacks[name])}"
        )
    return ARCHITECTURES[name], fields


def incompatibilities(arch: Architecture, fields: Fields) -> list[str]:
    """What the architecture needs of a model and does not get, in words."""
    wanted: Fields = PLAIN | dict(arch.ours)
    free = set() if not arch.rope_theta else {n for n in PLAIN if n.startswith("rope_")}
    free |= {"sliding_window", "full_attention_every"} if arch.windows else set()
    free |= {"head_transform"} if arch.head else set()
    words = []
    for row in arch.settings:
        free |= set(row.ours)
        values = [fields[name] for name in row.ours]
        if len(set(values)) > 1:
            words.append(" and ".join(f"model.{name}" for name in row.ours) + " to be the same")
        elif write(row, fields) is REQUIRED:
            words.append(f"another model.{row.ours[0]} than {values[0]}")
    wanted = {name: value for name, value in wanted.items() if name not in free}
    wanted |= {name: of(fields) for name, of in arch.derived.items()}
    for name, value in wanted.items():
        same = fields[name] == value
        if isinstance(value, float):
            same = math.isclose(fields[name], value, rel_tol=1e-6)
        if not same:
            words.append(f"model.{name}={value}, but it is {fields[name]}")
    words += [need for need, holds in arch.needs if not holds(fields)]
    if arch.windows == "all" and fields["full_attention_every"]:
        words.append("model.full_attention_every=0")
    return words


def write(row: Setting, fields: Mapping[str, Any]) -> Any:
    """Their value of a row; `REQUIRED` if it cannot be said."""
    value = fields[row.ours[0]]
    if row.values:
        return next((theirs for theirs, ours in row.values if ours == value), REQUIRED)
    if row.write is not None:
        return row.write(value, fields)
    if row.null is not REQUIRED and value == row.null:
        return None
    return value


def write_settings(arch: Architecture, fields: Fields, dropout: float = 0.0) -> dict[str, Any]:
    """The keys of config.json that say what a model computes, and how it is dropped out."""
    config = {"model_type": arch.name} | {row.theirs: write(row, fields) for row in arch.settings}
    headless = arch.head and not fields["head_transform"]
    config["architectures"] = [arch.headless if headless else arch.model]
    for key, values in arch.theirs.items():
        if values[0] is not None:
            config[key] = values[0]
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
