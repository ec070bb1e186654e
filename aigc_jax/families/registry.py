"""The families: which objective goes with which models, and how they are put together.

A fifth family is one `register` call: an objective with its config, sampling options and models.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from aigc_jax.core.errors import UserError
from aigc_jax.core.objective import Objective
from aigc_jax.families.diffusion import diffusion, dit, meanflow, unet
from aigc_jax.families.gan import dcgan, gan, mlp_gan, r3gan
from aigc_jax.families.lm import language_model, lstm, masked_lm, text_task, transformer
from aigc_jax.families.vae import autoencoder, hierarchical_vae, kl_autoencoder, latent_groups, vae
from aigc_jax.families.vq import vq_autoencoder
from aigc_jax.modalities.spec import ImageSpec, TextSpec

Make = Callable[[Any, Any, Any, Any], Objective]


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family is put together.

    Attributes:
      objective: dataclass of the config section `objective`.
      sample: dataclass of the section `sample`.
      models: `{model.name: dataclass of the section model}`.
      make: (objective config, model config, data spec, dtype) → the objective.
      modality: what it can be trained on: "image", "text", "labelled text" or "tagged text".
      latents: whether its images may be continuous latents of an autoencoder.
    """

    objective: type
    sample: type
    models: Mapping[str, type]
    make: Make
    modality: str
    latents: bool = False


TEXT_MODELS = {"transformer": transformer.TransformerConfig, "lstm": lstm.LSTMConfig}
NETWORKS = {transformer.TransformerConfig: transformer.Transformer, lstm.LSTMConfig: lstm.LSTM}


def _text_model(model: Any, spec: TextSpec, dtype: Any, entries: int, outputs: int = 0) -> Any:
    """The network of a text model, for a tokenizer of so many entries."""
    context, vocab_size = model.context or spec.seq_len, model.vocab_size or entries
    if spec.seq_len > context:
        raise UserError(
            f"data.seq_len={spec.seq_len} is longer than model.context={context}: lower it"
        )
    if vocab_size < entries:
        raise UserError(
            f"model.vocab_size={vocab_size} is less than the {entries} tokens that the text needs:"
            " raise it, or leave it at 0"
        )
    return NETWORKS[type(model)](model, vocab_size, context, dtype, outputs)


def _lm(config: Any, model: Any, spec: TextSpec, dtype: Any) -> Objective:
    network = _text_model(model, spec, dtype, spec.tokenizer.size)
    return language_model.LanguageModel(config, network, spec.tokenizer)


def _masked_lm(config: Any, model: Any, spec: TextSpec, dtype: Any) -> Objective:
    size, mask = spec.tokenizer.size, spec.tokenizer.mask
    entries = size + 1 if mask is None else size  # a tokenizer without a mask gets one
    network = _text_model(model, spec, dtype, entries)
    mask = size if mask is None else mask
    return masked_lm.MaskedLanguageModel(config, network, spec.tokenizer, mask)


def _text_task(config: Any, model: Any, spec: TextSpec, dtype: Any) -> Objective:
    network = _text_model(model, spec, dtype, spec.tokenizer.size, len(spec.class_names))
    return text_task.TextTask(config, network, spec)


def _classes(model: Any, spec: ImageSpec) -> int:
    return spec.num_classes if model.conditional else 0


GAN_MODELS = {
    "dcgan": dcgan.DCGANConfig,
    "mlp": mlp_gan.MLPGANConfig,
    "r3gan": r3gan.R3GANConfig,
}
GAN_NETWORKS = {
    dcgan.DCGANConfig: dcgan,
    mlp_gan.MLPGANConfig: mlp_gan,
    r3gan.R3GANConfig: r3gan,
}


def _gan(config: Any, model: Any, spec: ImageSpec, dtype: Any) -> Objective:
    classes, networks = _classes(model, spec), GAN_NETWORKS[type(model)]
    generator = networks.Generator(model, spec.shape, classes, dtype)
    return gan.GAN(config, generator, networks.Critic(model, classes, dtype))


AUTOENCODERS: dict[str, type] = {
    "conv": autoencoder.ConvConfig,
    "mlp": autoencoder.MLPConfig,
    "kl": kl_autoencoder.KLConfig,
}
HALVES = {  # of autoencoders with one group of latents: encoder and decoder
    autoencoder.ConvConfig: (autoencoder.Encoder, autoencoder.Decoder),
    autoencoder.MLPConfig: (autoencoder.Encoder, autoencoder.Decoder),
    kl_autoencoder.KLConfig: (kl_autoencoder.Encoder, kl_autoencoder.Decoder),
}


def _halves(model: Any, spec: ImageSpec, dtype: Any) -> tuple[Any, Any]:
    """The encoder and the decoder of an autoencoder."""
    encoder, decoder = HALVES[type(model)]
    classes = _classes(model, spec)
    return encoder(model, classes, dtype), decoder(model, spec.shape, 1, classes, dtype)


def _vae(config: Any, model: Any, spec: ImageSpec, dtype: Any) -> Objective:
    if isinstance(model, hierarchical_vae.HierarchicalVAEConfig):
        classes = _classes(model, spec)
        up = hierarchical_vae.BottomUp(model, classes, dtype)
        down = hierarchical_vae.TopDown(model, spec.shape, classes, dtype)
        return vae.VAE(config, latent_groups.HierarchicalLatents(up, down), spec.levels)
    return vae.KLAutoencoder(
        config, latent_groups.SingleLatent(*_halves(model, spec, dtype)), spec.levels
    )


def _discrete(config: Any, model: Any, spec: ImageSpec, dtype: Any) -> Objective:
    return vq_autoencoder.VQAutoencoder(config, *_halves(model, spec, dtype))


DENOISERS = {unet.UNetConfig: unet.UNet, dit.DiTConfig: dit.DiT}


def _diffusion(config: Any, model: Any, spec: ImageSpec, dtype: Any) -> Objective:
    network = DENOISERS[type(model)](model, _classes(model, spec), dtype)
    return diffusion.Diffusion(config, network, spec.shape, 0 if spec.continuous else spec.levels)


def _meanflow(config: Any, model: Any, spec: ImageSpec, dtype: Any) -> Objective:
    network = DENOISERS[type(model)](model, _classes(model, spec), dtype)
    return meanflow.MeanFlow(config, network, spec.shape, 0 if spec.continuous else spec.levels)


DENOISER_CONFIGS = {"unet": unet.UNetConfig, "dit": dit.DiTConfig}


FAMILIES: dict[str, Family] = {
    "lm": Family(language_model.LMConfig, language_model.LMSample, TEXT_MODELS, _lm, "text"),
    "masked_lm": Family(
        masked_lm.MaskedLMConfig, masked_lm.MaskedLMSample, TEXT_MODELS, _masked_lm, "text"
    ),
    "classification": Family(
        text_task.TaskConfig, text_task.TaskSample, TEXT_MODELS, _text_task, "labelled text"
    ),
    "tagging": Family(
        text_task.TaskConfig, text_task.TaskSample, TEXT_MODELS, _text_task, "tagged text"
    ),
    "gan": Family(gan.GANConfig, gan.GANSample, GAN_MODELS, _gan, "image"),
    "vae": Family(
        vae.VAEConfig,
        vae.VAESample,
        {**AUTOENCODERS, "ladder": hierarchical_vae.HierarchicalVAEConfig},
        _vae,
        "image",
    ),
    "vq": Family(
        vq_autoencoder.VQConfig,
        vq_autoencoder.VQSample,
        AUTOENCODERS,
        _discrete,
        "image",
    ),
    "diffusion": Family(
        diffusion.DiffusionConfig,
        diffusion.DiffusionSample,
        DENOISER_CONFIGS,
        _diffusion,
        "image",
        latents=True,
    ),
    "meanflow": Family(
        meanflow.MeanFlowConfig,
        meanflow.MeanFlowSample,
        DENOISER_CONFIGS,
        _meanflow,
        "image",
        latents=True,
    ),
}


def register(name: str, family: Family) -> None:
    """Makes `objective.name = name` build `family`."""
    FAMILIES[name] = family
