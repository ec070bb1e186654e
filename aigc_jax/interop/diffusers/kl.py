"""diffusers' AutoencoderKL."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.families.vae import kl_autoencoder
from aigc_jax.interop.diffusers.tables import ENDS, ImageModel, block_types, levels, submodules
from aigc_jax.interop.mapping import Fields, TensorRule, module, setting, words
from aigc_jax.interop.parameters import Shape, parameter_shapes


def _kl_rules(config: kl_autoencoder.KLConfig) -> list[TensorRule]:
    rules = [
        *module("quant_conv", "encoder/quant_conv"),
        *module("post_quant_conv", "decoder/post_quant_conv"),
    ]
    count = len(config.channels)
    for part, down, up in (("encoder", config.blocks, 0), ("decoder", 0, config.blocks + 1)):
        rules += submodules(part, part, ENDS)
        rules += levels(count, down, up, f"{part}.", f"{part}/")
    return rules


@functools.lru_cache(maxsize=8)
def _kl_shapes(config: kl_autoencoder.KLConfig, channels: int, classes: int) -> dict[str, Shape]:
    side = config.factor
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    z = jax.ShapeDtypeStruct((1, 1, 1, config.latent), jnp.float32)
    encoder = parameter_shapes(kl_autoencoder.Encoder(config, 0).init, x)
    decoder = parameter_shapes(kl_autoencoder.Decoder(config, (side, side, channels), 0).init, z)
    return {f"encoder/{path}": shape for path, shape in encoder.items()} | {
        f"decoder/{path}": shape for path, shape in decoder.items()
    }


def _read_kl(config: Mapping[str, Any]) -> Fields:
    channels = config.get("block_out_channels", (64,))
    for side, block in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        block_types(config.get(f"{side}_block_types", [block]), (block,), channels)
    return {}


def _write_kl(fields: Fields) -> dict[str, Any]:
    levels = len(fields["channels"])
    return dict(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        force_upcast=True,
    )


KL = ImageModel(
    hf="AutoencoderKL",
    aigc="kl",
    config=kl_autoencoder.KLConfig,
    # Grey values as they are: what is decoded is the image itself.
    objective={"name": "vae", "likelihood": "bernoulli", "binarize": "none"},
    settings=(
        setting("block_out_channels", "channels", default=(64,)),
        setting("layers_per_block", "blocks", default=1),
        setting("latent_channels", "latent", default=4),
        setting("norm_num_groups", "norm_groups", default=32),
        setting("mid_block_add_attention", "middle_attention", default=True),
        setting("use_quant_conv", "quant_conv", default=True),
        setting("use_post_quant_conv", "post_quant_conv", default=True),
        setting("scaling_factor", "scaling_factor", default=0.18215),
        setting("shift_factor", "shift_factor", default=None, null=0.0),
    ),
    rules=_kl_rules,
    shapes=_kl_shapes,
    hf_fixed={"act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,)},
    aigc_fixed={"signed_output": True, "norm_eps": 1e-6},
    ignored=words("force_upcast down_block_types up_block_types"),
    read=_read_kl,
    write=_write_kl,
    needs=(("model.norm_groups to be given", lambda f: f["norm_groups"] > 0),),
    no_effect=frozenset(),
)
