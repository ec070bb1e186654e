"""diffusers' DiTTransformer2DModel."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.families.diffusion import dit
from aigc_jax.interop.diffusers.names import Pair
from aigc_jax.interop.diffusers.schema import Fields, Get, Model, denoiser_init
from aigc_jax.interop.mapping import setting, words

EMBEDDER = (
    ("timestep_embedder.linear_1", "time/in"),
    ("timestep_embedder.linear_2", "time/out"),
    ("class_embedder.embedding_table", "class"),
)
DIT_BLOCK = (
    ("norm1.linear", "modulation"),
    ("ff.net.0.proj", "mlp_in"),
    ("ff.net.2", "mlp_out"),
)


def _dit_pairs(config: dit.DiTConfig) -> list[Pair]:
    pairs = [
        Pair("pos_embed.proj", "patch"),
        Pair("proj_out_1", "final_modulation"),
        Pair("proj_out_2", "final"),
    ]
    for i in range(config.depth):
        block = Pair(f"transformer_blocks.{i}", "layers", i)
        pairs += block.inner(*DIT_BLOCK)
        pairs += Pair(f"{block.theirs}.attn1", "layers/attention", i).attention()
        own = config.embedders == "per_block"
        embedder = ("layers/embedder", i) if own else ("embedder", None)
        pairs += Pair(f"{block.theirs}.norm1.emb", *embedder).inner(*EMBEDDER)
    return pairs


def _read_dit(theirs: Mapping[str, Any]) -> Fields:
    heads, size = theirs.get("num_attention_heads", 16), theirs.get("attention_head_dim", 72)
    if type(heads) is not int or type(size) is not int or not 0 < heads * size < 2**31:
        raise ValueError("must have whole numbers of num_attention_heads and attention_head_dim")
    return dict(width=heads * size)


def _settle(config: dit.DiTConfig, get: Get) -> Fields:
    """Whether all blocks have the same embedder, as those have that were trained with one."""
    for theirs, _ in EMBEDDER:
        for leaf in ("weight", "bias"):
            first, *others = (
                get(f"transformer_blocks.{i}.norm1.emb.{theirs}.{leaf}")
                for i in range(config.depth)
            )
            if any(not np.array_equal(first, other) for other in others):
                return dict(embedders="per_block")
    return dict(embedders="shared")


def _write_dit(fields: Fields) -> dict[str, Any]:
    return dict(attention_head_dim=fields["width"] // fields["heads"])


DIT = Model(
    theirs="DiTTransformer2DModel",
    ours="dit",
    config=dit.DiTConfig,
    objective={"name": "diffusion"},
    settings=(
        setting("num_attention_heads", "heads", default=16),
        setting("num_layers", "depth", default=28),
        setting("dropout", "dropout", default=0.0),
        setting("attention_bias", "qkv_bias", default=True),
        setting("patch_size", "patch_size", default=2),
        setting("norm_eps", "mlp_norm_eps", default=1e-5),
        setting(
            "activation_fn",
            "activation",
            default="gelu-approximate",
            values=(("gelu-approximate", "gelu"), ("gelu", "gelu_exact")),
        ),
    ),
    pairs=_dit_pairs,
    init=denoiser_init(dit.DiT),
    fixed={"norm_type": ("ada_norm_zero",), "norm_elementwise_affine": (False,)},
    ours_fixed={
        "mlp_ratio": 4.0,
        "positions": "sincos",
        "qk_norm": False,
        "frequencies": 256,
        "frequency_shift": 1.0,
    },
    ignored=words("norm_num_groups upcast_attention attention_head_dim"),
    read=_read_dit,
    write=_write_dit,
    needs=(
        ("classes", lambda f: f["classes"] > 0),
        ("square images", lambda f: f["shape"][0] == f["shape"][1]),
    ),
    idle=frozenset({"conditional", "remat", "scan_unroll", "embedders"}),
    buffers=("pos_embed.pos_embed",),
    colours=4,
    outputs=0,
    classes="num_embeds_ada_norm",
    default_classes=1000,
    settle=_settle,
)
