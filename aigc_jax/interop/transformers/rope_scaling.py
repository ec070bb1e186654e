"""Rotary positions in config.json, in its old form and in that of transformers 5.

The old form is `rope_theta` beside `rope_scaling`, the new one has both in `rope_parameters`.
"""

import math
from collections.abc import Mapping
from typing import Any

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.interop.transformers.table import PLAIN

KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
# What each kind of scaling reads: their key and our field.
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
    """The fields `rope_…` of `TransformerConfig`, unchecked for type and range.

    Args:
      config: the content of config.json.
      theta: what transformers takes if the file names none.
      context: the longest text, which some kinds take for that of pretraining.
      where: the file, for messages.

    Raises:
      UserError: if the positions are of a kind that we lack, or are said twice and differently.
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
                f" and {shorten(other[key], 40)}), but all layers must turn alike"
            )
    return read[0]


def _read_block(block: Any, theta: Any, default: float, context: int, where: str) -> dict[str, Any]:
    """The fields of one object that describes rotary positions, beside `theta` or none."""
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
        if key not in known and value is not None and not _harmless(key, value, block):
            raise UserError(
                f"{where} sets {shorten(key, 40)}={shorten(value, 40)} for rotary positions of"
                " the kind"
                f" {kind}, which is not supported"
            )
    return fields


def _harmless(key: str, value: Any, block: Mapping[str, Any]) -> bool:
    """Whether a key that no field holds says what is so anyway."""
    plain = {"partial_rotary_factor": 1, "truncate": True, "mrope_interleaved": False}
    if key in plain:
        return value == plain[key]
    if key == "attention_factor":  # of yarn: field is the paper's
        factor = block.get("factor")
        numbers = isinstance(value, (int, float)) and isinstance(factor, (int, float))
        paper = 0.1 * math.log(factor) + 1 if numbers and factor > 1 else 1.0
        return numbers and math.isclose(value, paper, rel_tol=1e-6)
    return key in ("finetuned", "original_max_position_embeddings")  # remarks


def write_rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json in both forms, so that transformers 4 and 5 read them."""
    kind = "default" if fields["rope_scaling"] == "none" else fields["rope_scaling"]
    block = {"rope_type": kind} | {key: fields[field] for key, field in KINDS[kind].items()}
    theta = fields["rope_theta"]
    return {
        "rope_theta": theta,
        "rope_scaling": block if kind != "default" else None,
        "rope_parameters": {**block, "rope_theta": theta},
    }
