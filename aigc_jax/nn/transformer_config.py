"""Config of transformers: GPT-2, Llama, Qwen, Mistral, Gemma, BERT and others."""

import dataclasses
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option

PROJECTIONS = ("query", "key", "value", "out", "gate", "in", "down")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Architecture of a transformer, its initialisation, LoRA and rematerialisation."""

    layers: int = option(4, low=1)  # number of blocks
    width: int = option(128, low=2)  # size of the residual stream
    heads: int = option(4, low=1)  # query heads
    kv_heads: int = option(0, low=0)  # key and value heads (grouped-query attention); 0: heads
    head_dim: int = option(0, low=0, init_compatible=True)  # size of a head; 0: width / heads
    mlp_width: int = option(0, low=0)  # hidden size of the MLP; 0: 4 · width
    # Maximum tokens of a sequence; 0: data.seq_len.
    context: int = option(0, low=0, init_compatible=True)
    vocab_size: int = option(0, low=0, init_compatible=True)  # 0: size of the tokenizer
    causal: bool = True  # causal attention; False: bidirectional, for masked language models

    positions: str = option("rotary", choices=("rotary", "learned", "none"))  # position embedding
    rope_theta: float = option(10_000.0, low=1.0)  # base of RoPE's frequencies
    # Extension of RoPE to longer contexts; see `ops.rope.rotary_frequencies`.
    rope_scaling: str = option("none", choices=("none", "linear", "llama3", "yarn"))
    rope_factor: float = option(1.0, low=1.0)  # extended context / context of pretraining
    rope_original_context: int = option(0, low=0)  # llama3, yarn: context of pretraining, tokens
    rope_low_freq_factor: float = option(1.0, low=0.0)  # llama3
    rope_high_freq_factor: float = option(4.0, low=0.0)  # llama3
    rope_beta_fast: float = option(32.0, low=0.0)  # yarn
    rope_beta_slow: float = option(1.0, low=0.0)  # yarn

    norm: str = option("rmsnorm", choices=("rmsnorm", "layernorm"))
    # Norms before each branch, after each sum, or before and after each branch.
    norm_position: str = option("pre", choices=("pre", "post", "both"))
    norm_eps: float = option(1e-6, low=0.0)  # ε of norms
    norm_bias: bool = True  # whether layer norms have a bias
    norm_scale: bool = True  # whether norms have a learned scale
    norm_offset: bool = False  # whether scales are 1 + the learned parameter, as in Gemma
    embedding_norm: bool = False  # whether the embedding has a norm
    qk_norm: bool = False  # whether each head's queries and keys have an RMS norm
    activation: str = option("gelu", choices=("gelu", "gelu_exact", "silu", "relu", "relu2"))
    gated: bool = False  # GLU: with silu SwiGLU, with gelu GeGLU (Shazeer 2020)
    qkv_bias: bool = False  # bias of query, key and value projections
    out_bias: bool = False  # bias of the attention's output projection
    mlp_bias: bool = False  # bias of the MLP's layers
    # Kernel width, in tokens, of the short convolution in each branch (Allen-Zhu 2025); 1 disables.
    conv_width: int = option(1, low=1)
    sliding_window: int = option(0, low=0)  # tokens attended to, including itself; 0 disables
    full_attention_every: int = option(0, low=0)  # every nth layer has no window; 0 disables
    attention_scale: float = option(0.0, low=0.0)  # factor of attention logits; 0: 1/√head_dim
    attention_softcap: float = option(0.0, low=0.0)  # tanh bound of attention logits; 0 disables
    logit_scale: float = option(1.0, low=0.0)  # factor of output logits
    logit_softcap: float = option(0.0, low=0.0)  # tanh bound of output logits; 0 disables
    residual_scale: float = option(1.0, low=0.0)  # factor of each branch before the sum
    embedding_scale: float = option(1.0, low=0.0)  # factor of token embeddings
    tie_embeddings: bool = True  # whether the output matrix is the token embedding
    token_types: int = option(0, low=0)  # BERT's token types, of which only 0 is used; 0 disables
    head_transform: bool = False  # BERT's dense layer and norm before the output
    head_bias: bool = False  # bias of the output

    # Standard deviation of initial kernels; 0: 1/√inputs.
    init_std: float = option(0.0, low=0.0, init_compatible=True)
    # Standard deviation of initial embeddings; 0: init_std, or 0.02 if that is 0.
    embedding_std: float = option(0.0, low=0.0, init_compatible=True)
    # Whether output projections of branches, and of an untied head, are initially zero.
    zero_init: bool = option(True, init_compatible=True)
    dropout: float = option(0.0, low=0.0, high=0.99, init_compatible=True)  # dropout rate

    # Rank of LoRA adapters (Hu et al. 2021), which freeze all other weights; 0 disables.
    lora_rank: int = option(0, low=0, init_compatible=True)
    lora_alpha: float = option(16.0, low=0.0, init_compatible=True)  # adapters × alpha / rank
    lora_targets: tuple[str, ...] = option(("query", "value"), choices=(), init_compatible=True)
    lora_dropout: float = option(0.0, low=0.0, high=0.99, init_compatible=True)  # of their inputs

    # Rematerialisation: "none" saves all activations for the backward pass, "full" only the inputs
    # of layers, "dots" also the results of matrix products.
    remat: str = option("none", choices=("none", "full", "dots"), resumable=True)
    # Layers per iteration of the scan over layers; more take longer to compile. 0: by platform, see
    # ops/dispatch.py.
    scan_unroll: int = option(0, low=0, resumable=True)

    def __post_init__(self):
        if not self.head_dim and self.width % self.heads:
            raise UserError(
                f"model.width={self.width} must be divisible by model.heads={self.heads}, or"
                " set model.head_dim"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise UserError(
                f"model.positions=rotary needs an even head size, not {self.head_size}: change"
                " model.width, model.heads or model.head_dim"
            )
        if self.heads % self.key_heads:
            raise UserError(
                f"model.heads={self.heads} must be divisible by model.kv_heads={self.kv_heads}"
            )
        if self.rope_scaling in ("llama3", "yarn") and not self.rope_original_context:
            raise UserError(
                f"model.rope_scaling={self.rope_scaling} needs model.rope_original_context, the"
                " context of pretraining in tokens"
            )
        wrong = set(self.lora_targets) - set(PROJECTIONS)
        if wrong:
            raise UserError(
                f"model.lora_targets has {sorted(wrong)[0]!r}: choose from {', '.join(PROJECTIONS)}"
            )

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.width // self.heads

    def length_of(self, spec: Any) -> int:
        """Returns tokens per example of a data spec."""
        return spec.seq_len

    @property
    def hidden(self) -> int:
        """Returns the hidden size of the MLP."""
        return self.mlp_width or 4 * self.width

    @property
    def bounded(self) -> bool:
        """Returns whether sequences cannot be longer than `context`."""
        return self.positions == "learned"

    def windows(self) -> list[int]:
        """Returns the attention window of each layer, in positions; 0 without a window."""
        every = self.full_attention_every
        return [
            0 if every and (i + 1) % every == 0 else self.sliding_window for i in range(self.layers)
        ]

    def attended_share(self, length: int) -> float:
        """Returns the fraction of the length² query-key pairs attended to; mean over layers."""
        before = np.arange(length)
        after = 0 if self.causal else before[::-1]
        reach = [(window or length) - 1 for window in self.windows()]
        pairs = [(np.minimum(before, r) + np.minimum(after, r) + 1).sum() for r in reach]
        return float(np.mean(pairs)) / length**2

    @property
    def common_window(self) -> int | None:
        """Returns the window of all layers; None if they differ."""
        windows = set(self.windows())
        return windows.pop() if len(windows) == 1 else None
