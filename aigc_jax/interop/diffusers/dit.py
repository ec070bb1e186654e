"""diffusers' DiTTransformer2DModel."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.families.diffusion import dit
from aigc_jax.interop.diffusers.tables import (
    GetTensor,
    ImageModel,
    attention,
    denoiser_shapes,
    submodules,
)
from aigc_jax.interop.mapping import Fields, TensorRule, module, setting, words

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


def _dit_rules(config: dit.DiTConfig) -> list[TensorRule]:
    rules = [
        *module("pos_embed.proj", "patch"),
        *module("proj_out_1", "final_modulation"),
        *module("proj_out_2", "final"),
    ]
    for i in range(config.depth):
        block = f"transformer_blocks.{i}"
        rules += submodules(block, "layers", DIT_BLOCK, i)
        rules += attention(f"{block}.attn1", "layers/attention", i)
        # A shared embedder of ours has a copy in each block of diffusers.
        own = config.embedders == "per_block"
        aigc, layer = ("layers/embedder", i) if own else ("embedder", None)
        rules += submodules(f"{block}.norm1.emb", aigc, EMBEDDER, layer)
    return rules


def _read_dit(config: Mapping[str, Any]) -> Fields:
    heads, size = config.get("num_attention_heads", 16), config.get("attention_head_dim", 72)
    if type(heads) is not int or type(size) is not int or not 0 < heads * size < 2**31:
        raise ValueError("must have integers num_attention_heads and attention_head_dim")
    return dict(width=heads * size)


def _embedders(config: dit.DiTConfig, get: GetTensor) -> Fields:
    """Returns `embedders`: blocks that were trained with a shared embedder have equal copies."""
    for name, _ in EMBEDDER:
        for leaf in ("weight", "bias"):
            copies = [
                get(f"transformer_blocks.{i}.norm1.emb.{name}.{leaf}") for i in range(config.depth)
            ]
            present = [copy for copy in copies if copy is not None]  # gaps are refused later
            if any(not np.array_equal(present[0], copy) for copy in present[1:]):
                return dict(embedders="per_block")
    return dict(embedders="shared")


def _write_dit(fields: Fields) -> dict[str, Any]:
    return dict(attention_head_dim=fields["width"] // fields["heads"])


DIT = ImageModel(
    hf="DiTTransformer2DModel",
    aigc="dit",
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
    rules=_dit_rules,
    shapes=denoiser_shapes(dit.DiT),
    hf_fixed={"norm_type": ("ada_norm_zero",), "norm_elementwise_affine": (False,)},
    aigc_fixed={
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
    no_effect=frozenset({"conditional", "remat", "scan_unroll", "embedders"}),
    buffers=(r"pos_embed\.pos_embed",),
    in_channels=4,
    out_channels=0,
    classes="num_embeds_ada_norm",
    default_classes=1000,
    from_tensors=_embedders,
)
