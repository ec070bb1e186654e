"""VAEs as a family, and the autoencoders that they share with the vector-quantised ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

from aigc_jax.core.conditions import ConditionSpec, class_conditions
from aigc_jax.core.modality import LEVELS, modelled_field
from aigc_jax.core.objective import Objective
from aigc_jax.core.registry import Registry
from aigc_jax.families.family import Family, Model, Parts, num_classes_of
from aigc_jax.families.vae import (
    conv_autoencoder,
    hierarchical_vae,
    kl_autoencoder,
    mlp_autoencoder,
    vae,
)
from aigc_jax.families.vae.kl_first_stage import KLAutoencoder
from aigc_jax.families.vae.latent_groups import HierarchicalLatents, SingleLatent

# A network is (encoder, decoder): called with (config, classes, dtype) and (config, shape, classes,
# dtype).
AUTOENCODERS: Registry[Model] = Registry(
    "autoencoder",
    "model.name",
    {
        "conv": Model(
            conv_autoencoder.ConvConfig,
            (conv_autoencoder.ConvEncoder, conv_autoencoder.ConvDecoder),
        ),
        "mlp": Model(
            mlp_autoencoder.MLPConfig, (mlp_autoencoder.MLPEncoder, mlp_autoencoder.MLPDecoder)
        ),
        "kl": Model(kl_autoencoder.KLConfig, (kl_autoencoder.Encoder, kl_autoencoder.Decoder)),
    },
)


def encoder_and_decoder(parts: Parts) -> tuple[Any, Any]:
    """The two networks of an autoencoder."""
    encoder, decoder = parts.network
    classes = num_classes_of(parts.model, parts.spec)
    return (
        encoder(parts.model, classes, parts.dtype),
        decoder(parts.model, parts.spec.shape, classes, parts.dtype),
    )


def conditions_of_parts(parts: Parts) -> dict[str, ConditionSpec]:
    """What the networks are given: the class, if they are told it."""
    return class_conditions(num_classes_of(parts.model, parts.spec))


def _single_latent(parts: Parts) -> Objective:
    """A VAE with one group of latents, which can be the first stage of another model."""
    latents = SingleLatent(*encoder_and_decoder(parts))
    return KLAutoencoder(
        parts.objective,
        latents,
        parts.spec.levels,
        conditions_of_parts(parts),
        field=modelled_field(parts.spec),
    )


def _hierarchical(parts: Parts) -> Objective:
    """A VAE with several groups of latents."""
    classes = num_classes_of(parts.model, parts.spec)
    bottom_up, top_down = parts.network
    latents = HierarchicalLatents(
        bottom_up(parts.model, classes, parts.dtype),
        top_down(parts.model, parts.spec.shape, classes, parts.dtype),
    )
    return vae.VAE(
        parts.objective,
        latents,
        parts.spec.levels,
        conditions_of_parts(parts),
        field=modelled_field(parts.spec),
    )


@dataclasses.dataclass(frozen=True)
class VAEModel:
    """A VAE's networks, and how they are put together.

    Attributes:
      networks: (encoder, decoder), or what `make` needs.
      make: makes the objective of the parts, whose `network` is then `networks`.
    """

    networks: Any
    make: Callable[[Parts], Objective]


def _vae(parts: Parts) -> Objective:
    model: VAEModel = parts.network
    return model.make(dataclasses.replace(parts, network=model.networks))


_SINGLE = {
    name: Model(model.config, VAEModel(model.network, _single_latent))
    for name, model in AUTOENCODERS.items()
}
_HIERARCHY = VAEModel((hierarchical_vae.BottomUp, hierarchical_vae.TopDown), _hierarchical)
VAE_MODELS: Registry[Model] = Registry(
    "vae_model",
    "model.name",
    {**_SINGLE, "hierarchical_vae": Model(hierarchical_vae.HierarchicalVAEConfig, _HIERARCHY)},
)
VAE = Family(vae.VAEConfig, vae.VAESample, VAE_MODELS, _vae, (LEVELS,))
