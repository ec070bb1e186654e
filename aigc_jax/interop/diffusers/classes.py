"""The classes of diffusers that can be read and written, one table each (`tables`)."""

from aigc_jax.interop.diffusers.dit import DIT
from aigc_jax.interop.diffusers.kl import KL
from aigc_jax.interop.diffusers.unet import UNET

TABLES = (UNET, KL, DIT)
BY_CLASS = {table.hf: table for table in TABLES}  # `_class_name`
BY_MODEL = {table.aigc: table for table in TABLES}  # our `model.name`
BY_CONFIG = {table.config: table for table in TABLES}  # our config dataclass
