"""diffusers' UNet2DModel."""

from collections.abc import Mapping
from typing import Any

from aigc_jax.families.diffusion import unet
from aigc_jax.interop.diffusers.tables import (
    ENDS,
    ImageModel,
    block_types,
    denoiser_shapes,
    levels,
)
from aigc_jax.interop.mapping import Fields, TensorRule, module, setting, words

SWAPPED = ((True, False), (False, True))


def _unet_rules(config: unet.UNetConfig) -> list[TensorRule]:
    rules: list[TensorRule] = []
    for hf, aigc in (
        *ENDS,
        ("time_embedding.linear_1", "time_in"),
        ("time_embedding.linear_2", "time_out"),
        ("class_embedding", "class_embedding"),
    ):
        rules += module(hf, aigc)
    return rules + levels(len(config.channels), config.blocks, config.blocks + 1)


DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
DEFAULT_DOWN = ("DownBlock2D", *["AttnDownBlock2D"] * 3)
DEFAULT_UP = (*["AttnUpBlock2D"] * 3, "UpBlock2D")


def _read_unet(config: Mapping[str, Any]) -> Fields:
    channels = config.get("block_out_channels", (224, 448, 672, 896))
    down = block_types(config.get("down_block_types", DEFAULT_DOWN), DOWN, channels)
    up = block_types(config.get("up_block_types", DEFAULT_UP), UP, channels)[::-1]
    attends = [name.startswith("Attn") for name in down]
    if attends != [name.startswith("Attn") for name in up]:
        raise ValueError("has attention at other levels on the way down than on the way up")
    resample = _resample(config, down, up)
    size = config.get("attention_head_dim", 8)
    groups, scale_shift = config.get("norm_num_groups", 32), config.get("resnet_time_scale_shift")
    middle = config.get("attn_norm_num_groups")
    if middle is None:
        middle = -1 if scale_shift == "scale_shift" else 0
    width = config.get("time_embedding_dim") or channels[0] * 4
    return dict(
        attention_levels=[i for i, has in enumerate(attends) if has],
        resample=resample,
        head_size=0 if size is None else size,
        heads=1,
        middle_groups=0 if middle == groups else middle,
        embedding=width,
        frequencies=channels[0],
        middle_blocks=0 if config.get("mid_block_type", "UNetMidBlock2D") is None else 2,
    )


def _resample(config: Mapping[str, Any], down: list[str], up: list[str]) -> str:
    """Returns the kind of down- and upsampling, which must be the same at all levels."""
    last = len(down) - 1
    kinds = set()
    for side, names in (("down", down), ("up", up)):
        key = f"{side}sample_type"
        kind = config.get(key, "conv")
        if kind not in ("conv", "resnet"):
            raise ValueError(f"sets {key}={kind!r}, but only conv, resnet is supported")
        for level, name in enumerate(names):
            if level < last if side == "down" else level > 0:  # the last has nothing to resize
                own = {"A": kind, "R": "resnet"}.get(name[0], "conv")
                kinds.add("block" if own == "resnet" else "conv")
    if len(kinds) > 1:
        raise ValueError("resamples by convolutions at some levels and by blocks at others")
    return kinds.pop() if kinds else "conv"


def _write_unet(fields: Fields) -> dict[str, Any]:
    block = fields["resample"] == "block"
    attends = [level in fields["attention_levels"] for level in range(len(fields["channels"]))]
    plain = 2 * block
    middle, groups = fields["middle_groups"], fields["norm_groups"]
    shift = fields["condition"] == "shift"
    usual = middle == (0 if shift else -1) or not fields["middle_attention"]
    return dict(
        down_block_types=[DOWN[1] if has else DOWN[plain] for has in attends],
        up_block_types=[UP[1] if has else UP[plain] for has in attends[::-1]],
        downsample_type="resnet" if block else "conv",
        upsample_type="resnet" if block else "conv",
        attention_head_dim=fields["head_size"] or None,
        attn_norm_num_groups=None if usual else middle or groups,
        time_embedding_dim=fields["embedding"],
        mid_block_type="UNetMidBlock2D" if fields["middle_blocks"] else None,
    )


UNET = ImageModel(
    hf="UNet2DModel",
    aigc="unet",
    config=unet.UNetConfig,
    objective={"name": "diffusion"},
    settings=(
        setting("block_out_channels", "channels", default=(224, 448, 672, 896)),
        setting("layers_per_block", "blocks", default=2),
        setting("dropout", "dropout", default=0.0),
        setting("norm_num_groups", "norm_groups", default=32),
        setting("norm_eps", "norm_eps", default=1e-5),
        setting("freq_shift", "frequency_shift", default=0),
        setting("flip_sin_to_cos", "sin_first", default=True, values=SWAPPED),
        setting("center_input_sample", "center_input", default=False),
        setting("downsample_padding", "down_padding", default=1),
        setting(
            "resnet_time_scale_shift",
            "condition",
            default="default",
            values=(("default", "shift"), ("scale_shift", "scale_shift")),
        ),
        setting(
            "add_attention",
            "middle_attention",
            default=True,
            values=((True, "always"), (False, "never")),
        ),
    ),
    rules=_unet_rules,
    shapes=denoiser_shapes(unet.UNet),
    hf_fixed={
        "time_embedding_type": ("positional",),
        "mid_block_scale_factor": (1,),
        "act_fn": ("silu", "swish"),
        "class_embed_type": (None,),
    },
    aigc_fixed={"residual_scale": 1.0, "patch_size": 1},
    ignored=words(
        "num_train_timesteps down_block_types up_block_types downsample_type upsample_type"
        " attention_head_dim attn_norm_num_groups time_embedding_dim mid_block_type"
    ),
    read=_read_unet,
    write=_write_unet,
    needs=(
        ("model.norm_groups to be given", lambda f: f["norm_groups"] > 0),
        ("model.resample other than mean", lambda f: f["resample"] != "mean"),
        ("model.middle_blocks of 0 or 2", lambda f: f["middle_blocks"] != 1),
        (
            "model.middle_attention of always or never",
            lambda f: f["middle_attention"] != "level" or not f["middle_blocks"],
        ),
        (
            "model.frequencies equal to the first of model.channels",
            lambda f: (f["frequencies"] or f["embedding"]) == f["channels"][0],
        ),
        (
            "model.head_size to be given, or model.heads=1",
            lambda f: f["head_size"] > 0 or f["heads"] == 1,
        ),
        (
            "model.middle_groups of at least 0, or model.condition=scale_shift",
            lambda f: f["middle_groups"] >= 0 or f["condition"] == "scale_shift",
        ),
    ),
    no_effect=frozenset({"conditional", "remat"}),
    classes="num_class_embeds",
)
