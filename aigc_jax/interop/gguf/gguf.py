"""A GGUF file → the fields, parameters and tokenizer of our transformer.

Weights are dequantised to float32. The metadata is said in the words of config.json and read by the
same tables (`architectures`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.interop.gguf.gguf_file import GgufFile
from aigc_jax.interop.gguf.gguf_tokenizer import read_tokenizer
from aigc_jax.interop.mapping import Architecture, Weight, layer_weights
from aigc_jax.interop.transformers import names, settings
from aigc_jax.interop.transformers.architectures import ARCHITECTURES
from aigc_jax.interop.transformers.folder import Imported
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
# Keys that say what is known anyway, or change nothing with these values.
REMARKS = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
HARMLESS = {
    "expert_count": 0, "expert_used_count": 0, "attention.causal": True,
    "rope.scaling.attn_factor": 1, "attention.sliding_window": 0,
}  # fmt: skip
ENDS = (
    Weight("token_embd.weight", ("token_embedding/embedding",)),
    Weight("output_norm.weight", ("final_norm/scale",)),
    Weight("output.weight", ("head_embedding/kernel",), True),
)
LLAMA_WEIGHTS = ENDS + layer_weights(
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
GPT2_WEIGHTS = (
    *ENDS,
    Weight("position_embd.weight", ("position_embedding/embedding",)),
    Weight("output_norm.bias", ("final_norm/bias",)),
    *layer_weights(
        "blk.",
        ("attn_qkv", "attention/query attention/key attention/value"),
        ("attn_output", "attention/out"),
        ("ffn_up", "mlp/in"),
        ("ffn_down", "mlp/out"),
        ("attn_norm", "attention_norm"),
        ("ffn_norm", "mlp_norm"),
    ),
)
TABLES = {
    "llama": (LLAMA_KEYS, LLAMA_WEIGHTS),
    "qwen2": (LLAMA_KEYS, LLAMA_WEIGHTS),
    "qwen3": (LLAMA_KEYS, LLAMA_WEIGHTS),
    "gpt2": (GPT2_KEYS, GPT2_WEIGHTS),
}
FREQUENCIES = "rope_freqs.weight"  # how much each frequency of Llama 3 is divided
LLAMA3 = dict(original_context=8192, low_freq_factor=1.0, high_freq_factor=4.0)


def read_gguf(path: str) -> Imported:
    """The model in a GGUF file, its tokenizer too.

    At its peak it takes the memory of the float32 model and one tensor.

    Raises:
      UserError: if the file is broken, or its architecture, metadata, a tensor or the tokenizer is
        not supported.
    """
    file = GgufFile(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in TABLES:
        hint = did_you_mean(str(name), TABLES)
        raise UserError(f"{shorten(path)} is of the architecture {shorten(name, 40)!r}: {hint}")
    keys, weights = TABLES[name]
    arch = dataclasses.replace(ARCHITECTURES[name], weights=weights)
    fields = settings.read_settings(arch, _config(file, arch, keys), shorten(path))
    ours = names.shapes(settings.config_of(fields, shorten(path)))
    wanted = names.tensors(arch, ours)
    unknown = file.tensors.keys() - {tensor.name for tensor in wanted} - {FREQUENCIES}
    for tensor in sorted(unknown):
        raise UserError(
            f"{shorten(path)} has the tensor {shorten(tensor, 100)}, which the {name} that its"
            " metadata"
            " describes does not have"
        )

    def get(tensor: str) -> np.ndarray:
        array = file.read(tensor)
        heads = {"attn_q": fields["heads"], "attn_k": fields["kv_heads"]}.get(tensor.split(".")[-2])
        return _unturned(array, heads) if heads and name == "llama" else array

    found = {tensor: stored.shape for tensor, stored in file.tensors.items()}
    tokenizer, specials = read_tokenizer(file.metadata, fields["vocab_size"], shorten(path))
    params = names.gather(wanted, ours, found, get, path)
    kinds = sorted({file.kind(tensor) for tensor in found} - {"F32", "F16", "BF16"})
    notes = (
        [f"its weights were rounded ({', '.join(kinds)}) and are that exact only"] if kinds else []
    )
    template = file.metadata.get("tokenizer.chat_template", "")
    return Imported(
        model=fields,
        params=params,
        architecture=name,
        dtype="float32",
        specials=specials,
        notes=tuple(notes),
        tokenizer=tokenizer,
        chat_template=template if isinstance(template, str) else "",
    )


def _config(file: GgufFile, arch: Architecture, keys: Mapping[str, str]) -> dict[str, Any]:
    """The metadata as config.json would say it."""
    said = {
        key.removeprefix(f"{arch.name}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{arch.name}.")
    }
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{shorten(file.path)} lacks the tensor token_embd.weight: is it whole?")
    config: dict[str, Any] = {key: None for key in keys.values() if key in OPTIONAL_KEYS}
    config |= {keys[key]: value for key, value in said.items() if key in keys}
    config |= {
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    for key, part in (("attention_bias", "attn_q.bias"), ("mlp_bias", "ffn_up.bias")):
        if any(row.theirs == key for row in arch.settings):
            config[key] = f"blk.0.{part}" in file.tensors
    scaling = {SCALING_KEYS[key]: value for key, value in said.items() if key in SCALING_KEYS}
    if scaling.get("rope_type", "none") != "none":
        config["rope_scaling"] = scaling
    if FREQUENCIES in file.tensors:
        config["rope_scaling"] = _llama3(file, config)
    _check_rest(file, said, keys, config)
    return config


OPTIONAL_KEYS = ("num_key_value_heads", "head_dim", "rope_theta")  # may be missing in a file


def _check_rest(
    file: GgufFile, said: Mapping[str, Any], keys: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    """Raises UserError for metadata that may change what the model computes."""
    width, heads = said.get("embedding_length"), said.get("attention.head_count")
    size = config.get("head_dim")
    if size is None and type(width) is int and type(heads) is int and heads:
        size = width // heads
    harmless = HARMLESS | {"attention.value_length": size, "rope.dimension_count": size}
    for key, value in said.items():
        if key in keys or key in SCALING_KEYS or key in REMARKS:
            continue
        if key not in harmless or harmless[key] != value:
            raise UserError(
                f"{shorten(file.path)} sets {shorten(key, 60)}={shorten(value, 60)}, which is not"
                " supported"
            )
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UserError(f"{shorten(file.path)} is one of several parts: merge them first")


def _unturned(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in our order: llama.cpp turns neighbours, we turn halves."""
    rows = array.reshape(heads, -1, 2, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)


def _llama3(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling of rotary positions, recognised by what it divides the frequencies by.

    Raises:
      UserError: if that is not how Llama 3.1 to 3.3 do it.
    """
    divided = file.read(FREQUENCIES).ravel()
    theta = config.get("rope_theta") or 10_000.0
    if divided.size and np.isfinite(divided).all() and isinstance(theta, float) and theta > 1:
        if (divided == 1).all():
            return {"rope_type": "default"}
        factor = float(divided.max())
        kept, _ = rotary_frequencies(2 * divided.size, theta)
        ours, _ = rotary_frequencies(
            2 * divided.size, theta, scaling="llama3", factor=factor, **LLAMA3
        )
        if factor >= 1 and np.allclose(kept / ours, divided, rtol=1e-3):
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
