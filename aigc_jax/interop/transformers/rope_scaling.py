"""Rotary positions in config.json, in its old form and in that of transformers 5.

The old form is `rope_theta` beside `rope_scaling`, the new one has both in `rope_parameters`.
"""

import math
from collections.abc import Mapping
from typing import Any

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.interop.transformers.table import PLAIN

KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
# Kinds of scaling: key in the file and our field.
KINDS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_context",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
    },
    "yarn": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_context",
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
    },
}
OPTIONAL = {"beta_fast": 32.0, "beta_slow": 1.0}  # as in the paper
LAYER_TYPES = ("full_attention", "sliding_attention")


def read_rope(config: Mapping[str, Any], theta: float, context: int, where: str) -> dict[str, Any]:
    """Returns the fields `rope_…` of `TransformerConfig`, unchecked for type and range.

    Args:
      config: the content of config.json.
      theta: default of transformers.
      context: the longest text, the default of that in pretraining.
      where: the file, for messages.

    Raises:
      UserError: if the kind is not supported, or two settings contradict each other.
    """
    blocks = []
    for key in ("rope_scaling", "rope_parameters"):
        block = config.get(key) or {}
        if not isinstance(block, Mapping):
            raise UserError(f"{where}: {key} must be an object, but it is {shorten(block, 60)}")
        named = [block[kind] for kind in LAYER_TYPES if block.get(kind)]
        blocks += named or ([block] if block else [])
    given = config.get("rope_theta")
    read = [_read_block(block, given, theta, context, where) for block in blocks or [{}]]
    for other in read[1:]:
        if other != read[0]:
            key = next(k for k in other if other[k] != read[0][k])
            raise UserError(
                f"{where} gives two kinds of rotary positions ({key} is {shorten(read[0][key], 40)}"
                f" and {shorten(other[key], 40)}), but all layers must have the same"
            )
    return read[0]


def _read_block(block: Any, theta: Any, default: float, context: int, where: str) -> dict[str, Any]:
    """Returns the fields of one object that describes rotary positions.

    Args:
      block: the object.
      theta: `rope_theta` outside of it; None: there is none.
      default: of `rope_theta`.
      context: the longest text.
      where: the file, for messages.
    """
    if not isinstance(block, Mapping):
        raise UserError(f"{where}: rotary positions must be an object, not {shorten(block, 60)}")
    kind = block.get("rope_type", block.get("type", "default"))
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{where} asks for rotary positions of the kind {shorten(kind, 40)!r}, which is not"
            f" supported: there are {', '.join(KINDS)}"
        )
    fields = {key: PLAIN[key] for key in PLAIN if key.startswith("rope_")}
    fields["rope_scaling"] = "none" if kind == "default" else kind
    fields["rope_theta"] = block.get("rope_theta") if theta is None else theta
    if fields["rope_theta"] is None:
        fields["rope_theta"] = default
    elif block.get("rope_theta", fields["rope_theta"]) != fields["rope_theta"]:
        raise UserError(
            f"{where} gives rope_theta twice: {shorten(theta, 40)} and"
            f" {shorten(block['rope_theta'], 40)}"
        )
    defaults = OPTIONAL | {"original_max_position_embeddings": context}
    for key, field in KINDS[kind].items():
        value = block.get(key)
        fields[field] = defaults.get(key) if value is None else value
        if fields[field] is None:
            raise UserError(f"{where}: rotary positions of the kind {kind} lack {key}")
    known = {"rope_type", "type", "rope_theta", *KINDS[kind]}
    for key, value in block.items():
        if key not in known and value is not None and not _has_no_effect(key, value, block):
            raise UserError(
                f"{where} sets {shorten(key, 40)}={shorten(value, 40)} for rotary positions of"
                f" the kind {kind}, which is not supported"
            )
    return fields


def _has_no_effect(key: str, value: Any, block: Mapping[str, Any]) -> bool:
    """Returns whether a key without a field has no effect at its value."""
    plain = {"partial_rotary_factor": 1, "truncate": True, "mrope_interleaved": False}
    if key in plain:
        return value == plain[key]
    if key == "attention_factor":  # of yarn: ours is the paper's
        factor = block.get("factor")
        if not isinstance(value, (int, float)) or not isinstance(factor, (int, float)):
            return False
        paper = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
        return math.isclose(value, paper, rel_tol=1e-6)
    return key in ("finetuned", "original_max_position_embeddings")  # for information


def write_rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of config.json in both forms, for transformers 4 and 5."""
    kind = "default" if fields["rope_scaling"] == "none" else fields["rope_scaling"]
    block = {"rope_type": kind} | {key: fields[field] for key, field in KINDS[kind].items()}
    theta = fields["rope_theta"]
    return {
        "rope_theta": theta,
        "rope_scaling": block if kind != "default" else None,
        "rope_parameters": {**block, "rope_theta": theta},
    }
