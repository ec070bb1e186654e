"""Form of the tables for transformers' architectures, and what all of them share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.mapping import ModelTable, TensorRule

# Fields of TransformerConfig that change what a model computes, at the value most models have.
PLAIN: dict[str, Any] = dict(
    causal=True, positions="rotary", rope_theta=10_000.0, rope_scaling="none", rope_factor=1.0,
    rope_original_context=0, rope_low_freq_factor=1.0, rope_high_freq_factor=4.0,
    rope_beta_fast=32.0, rope_beta_slow=1.0, norm="rmsnorm", norm_position="pre", norm_eps=1e-6,
    norm_bias=True, norm_scale=True, norm_offset=False, embedding_norm=False, qk_norm=False,
    activation="silu", gated=True, qkv_bias=False, out_bias=False, mlp_bias=False, conv_width=1,
    sliding_window=0, full_attention_every=0, attention_scale=0.0, attention_softcap=0.0,
    logit_scale=1.0, logit_softcap=0.0, residual_scale=1.0, embedding_scale=1.0,
    tie_embeddings=True, token_types=0, head_transform=False, head_bias=False,
)  # fmt: skip
SIZES = (
    "layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "context", "vocab_size"
)  # fmt: skip
LIMITS = dict(
    layers=10_000, width=2**20, heads=2**16, kv_heads=2**16, head_dim=2**16, mlp_width=2**24,
    vocab_size=2**26, context=2**31 - 1,
)  # fmt: skip
NO_OP: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,), "is_decoder": (False, True), "add_cross_attention": (False,),
    "pruned_heads": ({},), "partial_rotary_factor": (1,), "rope_interleaved": (False,),
    "use_mrope": (False,),
}  # fmt: skip
ACTIVATIONS = (
    ("silu", "silu"), ("swish", "silu"), ("gelu_pytorch_tanh", "gelu"), ("gelu_new", "gelu"),
    ("gelu_fast", "gelu"), ("gelu", "gelu_exact"), ("relu", "relu"), ("relu2", "relu2"),
)  # fmt: skip
DIVISIBLE = (
    ("a model.width divisible by model.heads", lambda f: f["width"] % f["heads"] == 0),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(ModelTable):
    """One `model_type` of transformers.

    Attributes:
      model: transformers' class with the head of a language model.
      prefix: of the names of all tensors but the head's; a file may lack it.
      rules: its tensors.
      headless: its class without a head, if that is read too.
      head: prefix of the head's tensors, if a file may lack the head.
      dropouts: keys for the dropout rate.
      copies: tensors that repeat another one if the embeddings are tied.
      renamed: regular expressions of how tensor names end in old files, and how they end now.
      unread: regular expressions of tensors that we have no use for, and what they are.
      rope_theta: the default; 0: no rotary positions.
      windows: layers with a sliding window: "" none, "all", "chosen" by config.json, or
        "alternating" from the first.
    """

    model: str
    prefix: str
    rules: tuple[TensorRule, ...]
    config: type[Any] = TransformerConfig
    no_op: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=lambda: NO_OP)
    limits: Mapping[str, int] = dataclasses.field(default_factory=lambda: LIMITS)
    headless: str = ""
    head: str = ""
    dropouts: tuple[str, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unread: tuple[tuple[str, str], ...] = ()
    rope_theta: float = 10_000.0
    windows: str = ""
