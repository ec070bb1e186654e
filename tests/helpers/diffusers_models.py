"""Small image models that `diffusers` has too."""

import dataclasses

import numpy as np
from flax.traverse_util import unflatten_dict

from aigc_jax.families.diffusion.dit import DiTConfig
from aigc_jax.families.diffusion.unet import UNetConfig
from aigc_jax.families.vae.kl_autoencoder import KLConfig
from aigc_jax.interop.diffusers.classes import BY_CONFIG

UNET = UNetConfig(
    channels=(4, 8), blocks=1, heads=1, head_size=4, embedding=8, frequencies=4, norm_groups=2,
    middle_blocks=2, middle_attention="always", resample="conv", condition="shift",
    residual_scale=1.0,
)  # fmt: skip
DIT = DiTConfig(width=8, depth=2, heads=2, frequency_shift=1.0)
KL = KLConfig(channels=(4, 8), norm_groups=2, signed_output=True, scaling_factor=0.5)
CONFIGS = {
    "unet": (UNET, (4, 6, 3), 0),
    "unet by class": (dataclasses.replace(UNET, null_class=True, resample="block"), (4, 4, 1), 3),
    "unet without a null class": (
        dataclasses.replace(UNET, null_class=False, middle_blocks=0, learned_sigma=True),
        (4, 4, 1), 3),
    "dit": (DIT, (4, 4, 3), 2),
    "dit of own embedders": (dataclasses.replace(DIT, embedders="per_block"), (4, 4, 4), 2),
    "kl": (KL, (4, 4, 3), 0),
}  # fmt: skip


def random_params(config, colours, classes):
    rng, shapes = np.random.default_rng(0), BY_CONFIG[type(config)].shapes(config, colours, classes)
    return unflatten_dict(
        {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}, sep="/"
    )
