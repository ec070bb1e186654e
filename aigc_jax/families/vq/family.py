"""Autoencoders with discrete codes as a family."""

from aigc_jax.core.modality import LEVELS, modelled_field
from aigc_jax.core.objective import Objective
from aigc_jax.families.family import Family, Parts
from aigc_jax.families.vae.family import AUTOENCODERS, conditions_of_parts, encoder_and_decoder
from aigc_jax.families.vq.config import VQConfig, VQSample
from aigc_jax.families.vq.vq_autoencoder import VQAutoencoder


def _vq(parts: Parts) -> Objective:
    encoder, decoder = encoder_and_decoder(parts)
    return VQAutoencoder(
        parts.objective,
        encoder,
        decoder,
        conditions_of_parts(parts),
        field=modelled_field(parts.spec),
    )


VQ = Family(VQConfig, VQSample, AUTOENCODERS, _vq, (LEVELS,))
