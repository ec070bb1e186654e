"""diffusers' image models that can be read and written (`image_schema` explains their tables)."""

from aigc_jax.interop.image_dit import DIT
from aigc_jax.interop.image_kl import KL
from aigc_jax.interop.image_unet import UNET

MODELS = {model.theirs: model for model in (UNET, KL, DIT)}
BY_CONFIG = {model.config: model for model in MODELS.values()}
