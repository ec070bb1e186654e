"""diffusers' AutoencoderKL."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.families.vae import kl_autoencoder
from aigc_jax.interop.diffusers.names import Pair
from aigc_jax.interop.diffusers.schema import ENDS, Fields, Model, levels, types
from aigc_jax.interop.mapping import setting, words
from aigc_jax.interop.transformers.names import Shape, flat


def _kl_pairs(config: kl_autoencoder.KLConfig) -> list[Pair]:
    pairs = [Pair("quant_conv", "encoder/quant_conv")]
    pairs += [Pair("post_quant_conv", "decoder/post_quant_conv")]
    count = len(config.channels)
    for part, down, up in (("encoder", config.blocks, 0), ("decoder", 0, config.blocks + 1)):
        pairs += Pair(part, part).inner(*ENDS)
        pairs += levels(count, down, up, f"{part}.", f"{part}/")
    return pairs


@functools.lru_cache(maxsize=8)
def _kl_init(config: kl_autoencoder.KLConfig, colours: int, classes: int) -> dict[str, Shape]:
    key, side = jax.random.key(0), config.factor
    x = jax.ShapeDtypeStruct((1, side, side, colours), jnp.float32)
    z = jax.ShapeDtypeStruct((1, 1, 1, config.latent), jnp.float32)
    decoder = kl_autoencoder.Decoder(config, (side, side, colours), 1, 0)
    made = {
        "encoder": jax.eval_shape(kl_autoencoder.Encoder(config, 0).init, key, x)["params"],
        "decoder": jax.eval_shape(decoder.init, key, z)["params"],
    }
    return {path: leaf.shape for path, leaf in flat(nn.unbox(made)).items()}


def _read_kl(theirs: Mapping[str, Any]) -> Fields:
    channels = theirs.get("block_out_channels", (64,))
    for side, block in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        types(theirs.get(f"{side}_block_types", [block]), (block,), channels)
    return {}


def _write_kl(fields: Fields) -> dict[str, Any]:
    levels = len(fields["channels"])
    return dict(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        force_upcast=True,
    )


KL = Model(
    theirs="AutoencoderKL",
    ours="kl",
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
    pairs=_kl_pairs,
    init=_kl_init,
    fixed={"act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,)},
    ours_fixed={"signed_output": True, "norm_eps": 1e-6},
    ignored=words("force_upcast down_block_types up_block_types"),
    read=_read_kl,
    write=_write_kl,
    needs=(("model.norm_groups to be given", lambda f: f["norm_groups"] > 0),),
    idle=frozenset(),
)
