"""Autoencoders with discrete codes as a family."""

from aigc_jax.core.modality import LEVELS
from aigc_jax.core.objective import Objective
from aigc_jax.families.family import Family, Parts
from aigc_jax.families.vae.family import AUTOENCODERS, encoder_and_decoder
from aigc_jax.families.vq.vq_autoencoder import VQAutoencoder, VQConfig, VQSample


def _vq(parts: Parts) -> Objective:
    return VQAutoencoder(parts.objective, *encoder_and_decoder(parts))


VQ = Family(VQConfig, VQSample, AUTOENCODERS, _vq, (LEVELS,))
