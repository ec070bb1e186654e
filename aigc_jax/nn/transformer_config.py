"""Configuration of transformers: GPT-2, Llama, Qwen, Mistral, Gemma, BERT and others."""

import dataclasses
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option

PROJECTIONS = ("query", "key", "value", "out", "gate", "in", "down")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    layers: int = option(4, low=1)
    width: int = option(128, low=2)
    heads: int = option(4, low=1)
    kv_heads: int = option(0, low=0)  # heads of keys and values; 0: as many as heads
    head_dim: int = option(0, low=0, init_compatible=True)  # 0: width / heads
    mlp_width: int = option(0, low=0)  # 0: 4 · width
    # Tokens of the longest text; 0: data.seq_len.
    context: int = option(0, low=0, init_compatible=True)
    vocab_size: int = option(0, low=0, init_compatible=True)  # 0: the tokenizer's
    causal: bool = True  # False: bidirectional attention, as masked language models need

    positions: str = option("rotary", choices=("rotary", "learned", "none"))
    rope_theta: float = option(10_000.0, low=1.0)
    rope_scaling: str = option("none", choices=("none", "linear", "llama3", "yarn"))
    rope_factor: float = option(1.0, low=1.0)  # how much longer texts are than in pretraining
    rope_original_context: int = option(0, low=0)  # tokens in pretraining; llama3 and yarn
    rope_low_freq_factor: float = option(1.0, low=0.0)
    rope_high_freq_factor: float = option(4.0, low=0.0)
    rope_beta_fast: float = option(32.0, low=0.0)
    rope_beta_slow: float = option(1.0, low=0.0)

    norm: str = option("rmsnorm", choices=("rmsnorm", "layernorm"))
    norm_position: str = option("pre", choices=("pre", "post", "both"))
    norm_eps: float = option(1e-6, low=0.0)
    norm_bias: bool = True  # of layer norm
    norm_scale: bool = True  # whether norms have learned scales
    norm_offset: bool = False  # scales are 1 + s, as in Gemma
    embedding_norm: bool = False
    qk_norm: bool = False  # RMS norm of each head's queries and keys
    activation: str = option("gelu", choices=("gelu", "gelu_exact", "silu", "relu", "relu2"))
    gated: bool = False  # GLU: with silu SwiGLU, with gelu GeGLU (Shazeer 2020)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    # Kernel width in tokens of the short convolution before each branch (Allen-Zhu 2025); 1: none.
    conv_width: int = option(1, low=1)
    sliding_window: int = option(0, low=0)  # positions a token attends to, itself included; 0: all
    full_attention_every: int = option(0, low=0)  # every nth layer has no window; 0: none
    attention_scale: float = option(0.0, low=0.0)  # 0: 1/√head_dim
    attention_softcap: float = option(0.0, low=0.0)  # 0: off
    logit_scale: float = option(1.0, low=0.0)
    logit_softcap: float = option(0.0, low=0.0)  # 0: off
    residual_scale: float = option(1.0, low=0.0)  # of what each block adds
    embedding_scale: float = option(1.0, low=0.0)
    tie_embeddings: bool = True  # the output's weights are the token embedding
    token_types: int = option(0, low=0)  # BERT's; all tokens are of type 0
    head_transform: bool = False  # BERT's dense layer and norm before the output
    head_bias: bool = False

    init_std: float = option(0.0, low=0.0, init_compatible=True)  # of kernels; 0: 1/√inputs
    embedding_std: float = option(0.0, low=0.0, init_compatible=True)  # 0: init_std, or 0.02
    # Output projections of blocks, and of an untied head, begin at zero.
    zero_init: bool = option(True, init_compatible=True)
    dropout: float = option(0.0, low=0.0, high=0.99, init_compatible=True)

    lora_rank: int = option(0, low=0, init_compatible=True)  # 0: every weight is trained
    lora_alpha: float = option(16.0, low=0.0, init_compatible=True)
    lora_targets: tuple[str, ...] = option(("query", "value"), choices=(), init_compatible=True)
    lora_dropout: float = option(0.0, low=0.0, high=0.99, init_compatible=True)

    # Rematerialisation. none: all activations are saved; full: each layer's input only; dots: that
    # and the results of matrix products.
    remat: str = option("none", choices=("none", "full", "dots"), resumable=True)
    # Layers per iteration of the scan over layers: more compile longer. 0: by platform, see
    # ops/dispatch.py.
    scan_unroll: int = option(0, low=0, resumable=True)

    def __post_init__(self):
        if not self.head_dim and self.width % self.heads:
            raise UserError(
                f"model.width={self.width} must be divisible by model.heads={self.heads}, or"
                " model.head_dim given"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise UserError(
                f"rotary positions need an even head size, but it is {self.head_size}: change"
                " model.width, model.heads or model.head_dim"
            )
        if self.heads % self.key_heads:
            raise UserError(
                f"model.heads={self.heads} must be divisible by model.kv_heads={self.kv_heads}"
            )
        if self.rope_scaling in ("llama3", "yarn") and not self.rope_original_context:
            raise UserError(
                f"model.rope_scaling={self.rope_scaling} needs model.rope_original_context, the"
                " tokens of a text in pretraining"
            )
        wrong = set(self.lora_targets) - set(PROJECTIONS)
        if wrong:
            raise UserError(
                f"model.lora_targets names {sorted(wrong)[0]!r}: it may hold"
                f" {', '.join(PROJECTIONS)}"
            )

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.width // self.heads

    def length_of(self, spec: Any) -> int:
        """Tokens per example of a data spec."""
        return spec.seq_len

    @property
    def hidden(self) -> int:
        """The width inside the MLP."""
        return self.mlp_width or 4 * self.width

    @property
    def bounded(self) -> bool:
        """True if texts cannot be longer than `context`."""
        return self.positions == "learned"

    def windows(self) -> list[int]:
        """The attention window of each layer in positions; 0: none."""
        every = self.full_attention_every
        return [
            0 if every and (i + 1) % every == 0 else self.sliding_window for i in range(self.layers)
        ]

    def attended_share(self, length: int) -> float:
        """The share of the length² pairs of tokens that attend to each other; mean over layers."""
        before = np.arange(length)
        after = 0 if self.causal else before[::-1]
        reach = [(window or length) - 1 for window in self.windows()]
        pairs = [(np.minimum(before, r) + np.minimum(after, r) + 1).sum() for r in reach]
        return float(np.mean(pairs)) / length**2

    @property
    def common_window(self) -> int | None:
        """The window of all layers; None if they differ."""
        windows = set(self.windows())
        return windows.pop() if len(windows) == 1 else None
