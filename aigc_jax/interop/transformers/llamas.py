"""Llama and its descendants: Mistral, Qwen 2 and 3, Gemma 1 and 2."""

import math
from collections.abc import Mapping
from typing import Any

from aigc_jax.interop.mapping import (
    REQUIRED,
    Setting,
    TensorRule,
    layer_modules,
    setting,
)
from aigc_jax.interop.transformers.table import ACTIVATIONS, DIVISIBLE, Architecture

LLAMA_BLOCK = (
    ("self_attn.q_proj", "attention/query"),
    ("self_attn.k_proj", "attention/key"),
    ("self_attn.v_proj", "attention/value"),
    ("self_attn.o_proj", "attention/out"),
    ("self_attn.q_norm", "attention/query_norm"),
    ("self_attn.k_norm", "attention/key_norm"),
    ("mlp.gate_proj", "mlp/gate"),
    ("mlp.up_proj", "mlp/in"),
    ("mlp.down_proj", "mlp/out"),
    ("input_layernorm", "attention_norm"),
)
LLAMA_ENDS = (
    TensorRule("model.embed_tokens.weight", ("token_embedding/embedding",)),
    TensorRule("model.norm.weight", ("final_norm/scale",)),
    TensorRule("lm_head.weight", ("head_embedding/kernel",), True),
)
LLAMA_RULES = LLAMA_ENDS + layer_modules(
    "model.layers.", *LLAMA_BLOCK, ("post_attention_layernorm", "mlp_norm")
)
SANDWICH_RULES = LLAMA_ENDS + layer_modules(
    "model.layers.",
    *LLAMA_BLOCK,
    ("post_attention_layernorm", "attention_out_norm"),
    ("pre_feedforward_layernorm", "mlp_norm"),
    ("post_feedforward_layernorm", "mlp_out_norm"),
)


def _llama_settings(tied: bool, *more: Setting, **defaults: Any) -> tuple[Setting, ...]:
    """Settings that Llama's descendants share; `defaults` are those that differ between them."""
    return (
        setting("vocab_size", "vocab_size"),
        setting("hidden_size", "width"),
        setting("num_hidden_layers", "layers"),
        setting("num_attention_heads", "heads"),
        setting("num_key_value_heads", "kv_heads", default=defaults.get("kv_heads"), null=0),
        setting("head_dim", "head_dim", default=defaults.get("head_dim"), null=0),
        setting("intermediate_size", "mlp_width"),
        setting("max_position_embeddings", "context"),
        setting("rms_norm_eps", "norm_eps", default=1e-6),
        setting("tie_word_embeddings", "tie_embeddings", default=tied),
        *more,
    )


HIDDEN_ACT = setting("hidden_act", "activation", default="silu", values=ACTIVATIONS)
ATTENTION_BIAS = setting("attention_bias", "qkv_bias", "out_bias", default=False)
LLAMA_BUFFERS = (r".*rotary_emb\..*inv_freq",)
LLAMA_COPIES = {"lm_head.weight": "model.embed_tokens.weight"}
SHARED: dict[str, Any] = dict(
    prefix="model.", rules=LLAMA_RULES, buffers=LLAMA_BUFFERS, copies=LLAMA_COPIES
)

LLAMA = Architecture(
    hf="llama",
    model="LlamaForCausalLM",
    settings=_llama_settings(
        False, HIDDEN_ACT, ATTENTION_BIAS, setting("mlp_bias", "mlp_bias", default=False)
    ),
    aigc_fixed={},
    needs=DIVISIBLE,
    **SHARED,
)
MISTRAL = Architecture(
    hf="mistral",
    model="MistralForCausalLM",
    settings=_llama_settings(False, HIDDEN_ACT, kv_heads=8),
    aigc_fixed={},
    windows="all",
    **SHARED,
)
QWEN2 = Architecture(
    hf="qwen2",
    model="Qwen2ForCausalLM",
    settings=_llama_settings(False, HIDDEN_ACT, kv_heads=32),
    aigc_fixed=dict(qkv_bias=True),
    windows="chosen",
    **SHARED,
)
QWEN3 = Architecture(
    hf="qwen3",
    model="Qwen3ForCausalLM",
    settings=_llama_settings(False, HIDDEN_ACT, ATTENTION_BIAS, kv_heads=32, head_dim=128),
    aigc_fixed=dict(qk_norm=True),
    windows="chosen",
    **SHARED,
)


def _scalar(scale: float, fields: Mapping[str, Any]) -> Any:
    """Returns Gemma's query_pre_attn_scalar, an integer, for a scale of attention's logits."""
    scalar = round(scale**-2) if scale else fields["head_dim"]
    said = scalar and (not scale or math.isclose(scalar**-0.5, scale, rel_tol=1e-6))
    return scalar if said else REQUIRED


GEMMA_FIXED: dict[str, Any] = dict(norm_offset=True)
GEMMA_SCALE = {"embedding_scale": lambda f: float(f["width"]) ** 0.5}
GEMMA_TWO_WAY = {"use_bidirectional_attention": (None, False)}
GEMMA = Architecture(
    hf="gemma",
    model="GemmaForCausalLM",
    settings=_llama_settings(
        True,
        ATTENTION_BIAS,
        # Its first configs say "gelu" and mean the approximation by tanh.
        setting(
            "hidden_act",
            "activation",
            default="gelu_pytorch_tanh",
            values=(("gelu_pytorch_tanh", "gelu"), ("gelu", "gelu")),
        ),
        kv_heads=16,
        head_dim=256,
    ),
    aigc_fixed=GEMMA_FIXED,
    derived=GEMMA_SCALE,
    hf_fixed={"hidden_activation": (None, "gelu_pytorch_tanh"), **GEMMA_TWO_WAY},
    **SHARED,
)
GEMMA2 = Architecture(
    hf="gemma2",
    model="Gemma2ForCausalLM",
    settings=_llama_settings(
        True,
        ATTENTION_BIAS,
        setting(
            "hidden_activation", "activation", default="gelu_pytorch_tanh", values=ACTIVATIONS[2:]
        ),
        setting(
            "query_pre_attn_scalar",
            "attention_scale",
            default=256,
            read=lambda scalar: float(scalar) ** -0.5,
            write=_scalar,
        ),
        setting("attn_logit_softcapping", "attention_softcap", default=50.0, null=0.0),
        setting("final_logit_softcapping", "logit_softcap", default=30.0, null=0.0),
        kv_heads=4,
        head_dim=256,
    ),
    aigc_fixed=GEMMA_FIXED | dict(norm_position="both"),
    derived=GEMMA_SCALE,
    needs=DIVISIBLE,
    hf_fixed=GEMMA_TWO_WAY,
    ignored=frozenset({"hidden_act"}),
    windows="alternating",
    **(SHARED | {"rules": SANDWICH_RULES}),
)
