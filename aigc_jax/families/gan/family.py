"""GANs as a family."""

from aigc_jax.core.conditions import class_conditions
from aigc_jax.core.modality import LEVELS, modelled_field
from aigc_jax.core.objective import Objective
from aigc_jax.core.registry import Registry
from aigc_jax.families.family import Family, Model, Parts, num_classes_of
from aigc_jax.families.gan import dcgan, gan, mlp_gan, r3gan

# A network is (generator, critic): called with (config, shape, classes, dtype) and
# (config, classes, dtype).
GAN_MODELS: Registry[Model] = Registry(
    "gan_model",
    "model.name",
    {
        "dcgan": Model(dcgan.DCGANConfig, (dcgan.Generator, dcgan.Critic)),
        "mlp": Model(mlp_gan.MLPGANConfig, (mlp_gan.Generator, mlp_gan.Critic)),
        "r3gan": Model(r3gan.R3GANConfig, (r3gan.Generator, r3gan.Critic)),
    },
)


def _gan(parts: Parts) -> Objective:
    generator, critic = parts.network
    classes = num_classes_of(parts.model, parts.spec)
    return gan.GAN(
        parts.objective,
        generator(parts.model, parts.spec.shape, classes, parts.dtype),
        critic(parts.model, classes, parts.dtype),
        class_conditions(classes),
        field=modelled_field(parts.spec),
    )


GAN = Family(gan.GANConfig, gan.GANSample, GAN_MODELS, _gan, (LEVELS,))
