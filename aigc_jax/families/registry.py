"""The families that `objective.name` can name. A further one is one `register` call."""

from aigc_jax.core.registry import Registry
from aigc_jax.families.diffusion import family as diffusion
from aigc_jax.families.family import Family, Model, Parts
from aigc_jax.families.gan import family as gan
from aigc_jax.families.lm import family as lm
from aigc_jax.families.vae import family as vae
from aigc_jax.families.vq import family as vq

__all__ = ["FAMILIES", "Family", "Model", "Parts", "register"]

FAMILIES: Registry[Family] = Registry(
    "family",
    "objective.name",
    {
        "lm": lm.LM,
        "masked_lm": lm.MASKED_LM,
        "classification": lm.CLASSIFICATION,
        "tagging": lm.TAGGING,
        "gan": gan.GAN,
        "vae": vae.VAE,
        "vq": vq.VQ,
        "diffusion": diffusion.DIFFUSION,
        "meanflow": diffusion.MEANFLOW,
    },
)


def register(name: str, family: Family) -> None:
    """Makes `objective.name = name` build `family`."""
    FAMILIES.register(name, family)
