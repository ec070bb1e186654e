"""Reads a GGUF file: fields, parameters and tokenizer of our transformer.

Weights are dequantised to float32. The metadata is renamed to the keys of config.json and read by
the tables of `interop.transformers`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.interop import settings
from aigc_jax.interop.gguf.file_format import GgufFile
from aigc_jax.interop.gguf.tokenizer import read_gguf_tokenizer
from aigc_jax.interop.mapping import TensorRule, layer_modules
from aigc_jax.interop.parameters import bind, import_params
from aigc_jax.interop.transformers.architectures import ARCHITECTURES
from aigc_jax.interop.transformers.config_json import read_config_json
from aigc_jax.interop.transformers.read_folder import ImportedText, transformer_shapes
from aigc_jax.interop.transformers.table import Architecture
from aigc_jax.ops.rope import rotary_frequencies

LLAMA_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
GPT2_KEYS = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
SCALING_KEYS = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
# Keys that repeat what is known, and keys that have no effect at these values.
REDUNDANT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
NO_OP = {
    "expert_count": 0, "expert_used_count": 0, "attention.causal": True,
    "rope.scaling.attn_factor": 1, "attention.sliding_window": 0,
}  # fmt: skip
OPTIONAL_KEYS = ("num_key_value_heads", "head_dim", "rope_theta")  # may be missing in a file
ENDS = (
    TensorRule("token_embd.weight", ("token_embedding/embedding",)),
    TensorRule("output_norm.weight", ("final_norm/scale",)),
    TensorRule("output.weight", ("head_embedding/kernel",), True),
)
QWEN_RULES = ENDS + layer_modules(
    "blk.",
    ("attn_q", "attention/query"),
    ("attn_k", "attention/key"),
    ("attn_v", "attention/value"),
    ("attn_output", "attention/out"),
    ("attn_q_norm", "attention/query_norm"),
    ("attn_k_norm", "attention/key_norm"),
    ("ffn_gate", "mlp/gate"),
    ("ffn_up", "mlp/in"),
    ("ffn_down", "mlp/out"),
    ("attn_norm", "attention_norm"),
    ("ffn_norm", "mlp_norm"),
)
ROTARY_HEADS = {"attn_q": "heads", "attn_k": "kv_heads"}
LLAMA_RULES = tuple(
    dataclasses.replace(rule, rotary_heads=ROTARY_HEADS.get(rule.hf.split(".")[-2], ""))
    for rule in QWEN_RULES
)
GPT2_RULES = (
    *ENDS,
    TensorRule("position_embd.weight", ("position_embedding/embedding",)),
    TensorRule("output_norm.bias", ("final_norm/bias",)),
    *layer_modules(
        "blk.",
        ("attn_qkv", "attention/query attention/key attention/value"),
        ("attn_output", "attention/out"),
        ("ffn_up", "mlp/in"),
        ("ffn_down", "mlp/out"),
        ("attn_norm", "attention_norm"),
        ("ffn_norm", "mlp_norm"),
    ),
)


class GgufTable(NamedTuple):
    """One `general.architecture`.

    Attributes:
      keys: metadata keys, without the architecture's prefix, and the keys of config.json.
      rules: its tensors.
    """

    keys: Mapping[str, str]
    rules: tuple[TensorRule, ...]


TABLES = {
    "llama": GgufTable(LLAMA_KEYS, LLAMA_RULES),
    "qwen2": GgufTable(LLAMA_KEYS, QWEN_RULES),
    "qwen3": GgufTable(LLAMA_KEYS, QWEN_RULES),
    "gpt2": GgufTable(GPT2_KEYS, GPT2_RULES),
}
FREQUENCIES = "rope_freqs.weight"  # divisors of the rotary frequencies, as Llama 3 has them
LLAMA3: dict[str, Any] = dict(original_context=8192, low_freq_factor=1.0, high_freq_factor=4.0)


def read_gguf_file(path: str) -> ImportedText:
    """Reads the model in a GGUF file, its tokenizer too.

    At its peak it takes the memory of the float32 model and one tensor.

    Raises:
      UserError: if the file is broken, or its architecture, metadata, a tensor or the tokenizer is
        not supported.
    """
    file, where = GgufFile(path), shorten(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in TABLES:
        hint = did_you_mean(str(name), TABLES)
        raise UserError(f"{where} is of the architecture {shorten(name, 40)!r}: {hint}")
    table, arch = TABLES[name], ARCHITECTURES[name]
    fields = read_config_json(arch, _config_json(file, arch, table.keys), where)
    shapes = transformer_shapes(settings.make_config(arch, fields, where))
    tensors = bind(table.rules, shapes, arch.hf, fields)
    unknown = file.tensors.keys() - {tensor.name for tensor in tensors} - {FREQUENCIES}
    for tensor in sorted(unknown):
        raise UserError(
            f"{where} has the tensor {shorten(tensor, 100)}, which the {name} that its metadata"
            " describes does not have"
        )
    stored = {tensor: info.shape for tensor, info in file.tensors.items()}
    tokenizer, specials = read_gguf_tokenizer(file.metadata, fields["vocab_size"], where)
    params = import_params(tensors, shapes, stored, file.read, path)
    kinds = sorted({file.kind(tensor) for tensor in stored} - {"F32", "F16", "BF16"})
    notes = (f"its weights are quantised ({', '.join(kinds)}): they are rounded",) if kinds else ()
    template = file.metadata.get("tokenizer.chat_template", "")
    return ImportedText(
        model=fields,
        params=params,
        architecture=name,
        dtype="float32",
        specials=specials,
        notes=notes,
        tokenizer=tokenizer,
        chat_template=template if isinstance(template, str) else "",
    )


def _config_json(file: GgufFile, arch: Architecture, keys: Mapping[str, str]) -> dict[str, Any]:
    """Returns the metadata with the keys of config.json."""
    given = {
        key.removeprefix(f"{arch.hf}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{arch.hf}.")
    }
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{shorten(file.path)} lacks the tensor token_embd.weight: is it complete?")
    config: dict[str, Any] = {key: None for key in keys.values() if key in OPTIONAL_KEYS}
    config |= {keys[key]: value for key, value in given.items() if key in keys}
    config |= {
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    for key, part in (("attention_bias", "attn_q.bias"), ("mlp_bias", "ffn_up.bias")):
        if any(row.hf == key for row in arch.settings):
            config[key] = f"blk.0.{part}" in file.tensors
    scaling = {SCALING_KEYS[key]: value for key, value in given.items() if key in SCALING_KEYS}
    if scaling.get("rope_type", "none") != "none":
        config["rope_scaling"] = scaling
    if FREQUENCIES in file.tensors:
        config["rope_scaling"] = _llama3(file, config)
    _check_rest(file, given, keys, config)
    return config


def _check_rest(
    file: GgufFile, given: Mapping[str, Any], keys: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    """Raises UserError for metadata that may change what the model computes."""
    width, heads = given.get("embedding_length"), given.get("attention.head_count")
    size = config.get("head_dim")
    if size is None and type(width) is int and type(heads) is int and heads:
        size = width // heads
    no_op = NO_OP | {"attention.value_length": size, "rope.dimension_count": size}
    for key, value in given.items():
        if key in keys or key in SCALING_KEYS or key in REDUNDANT:
            continue
        if key not in no_op or no_op[key] != value:
            raise UserError(
                f"{shorten(file.path)} sets {shorten(key, 60)}={shorten(value, 60)}, which is not"
                " supported"
            )
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UserError(
            f"{shorten(file.path)} is one of several parts: merge them with llama-gguf-split"
        )


def _llama3(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns Llama 3's `rope_scaling`, recognised by its divisors of the frequencies.

    Raises:
      UserError: if the divisors are not those of Llama 3.1 to 3.3.
    """
    divisors = file.read(FREQUENCIES).ravel()
    theta = config.get("rope_theta") or 10_000.0
    if divisors.size and np.isfinite(divisors).all() and isinstance(theta, float) and theta > 1:
        if (divisors == 1).all():
            return {"rope_type": "default"}
        factor = float(divisors.max())
        plain, _ = rotary_frequencies(2 * divisors.size, theta)
        scaled, _ = rotary_frequencies(
            2 * divisors.size, theta, scaling="llama3", factor=factor, **LLAMA3
        )
        if factor >= 1 and np.allclose(plain / scaled, divisors, rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": LLAMA3["original_context"],
                "low_freq_factor": LLAMA3["low_freq_factor"],
                "high_freq_factor": LLAMA3["high_freq_factor"],
            }
    raise UserError(
        f"{shorten(file.path)} divides rotary frequencies ({FREQUENCIES}) unlike Llama 3,"
        " which is not supported"
    )
