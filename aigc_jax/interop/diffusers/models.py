"""diffusers' image models that can be read and written (`image_schema` explains their tables)."""

from aigc_jax.interop.diffusers.dit import DIT
from aigc_jax.interop.diffusers.kl import KL
from aigc_jax.interop.diffusers.unet import UNET

MODELS = {model.theirs: model for model in (UNET, KL, DIT)}
BY_CONFIG = {model.config: model for model in MODELS.values()}
