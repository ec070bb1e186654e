"""Diffusion models: denoise images at every noise level, conditional on a class if asked.

Shapes: B batch, H height, W width, C channels, N samples, K classes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax import config
from aigc_jax.config import option
from aigc_jax.models.unet import UNet
from aigc_jax.objectives.base import Batch, Request
from aigc_jax.objectives.noise import DDPM, EDM, FlowMatching, Parameterisation
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.random import fold, normal, uniform
from aigc_jax.sampling import diffusion as samplers
from aigc_jax.train.metrics import Mean


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    parameterisation: str = option("edm", choices=("edm", "flow", "ddpm"))
    label_dropout: float = option(0.1, low=0.0, high=1.0)  # for classifier-free guidance
    sigma_data: float = option(0.5, low=1e-6)  # edm: standard deviation of the data
    p_mean: float = -1.2  # edm: ln σ is normal with this mean …
    p_std: float = option(1.2, low=1e-6)  # … and deviation
    sigma_min: float = option(0.002, low=1e-9)
    sigma_max: float = option(80.0, low=1e-6)
    rho: float = option(7.0, low=1.0)
    eval_draws: int = option(8, low=1)  # noise levels per held-out image


@dataclasses.dataclass(frozen=True)
class DiffusionSample(config.Sample):
    sampler: str = option("heun", choices=samplers.SAMPLERS)
    steps: int = option(18, low=1)
    guidance: float = option(1.0, low=0.0)  # 1: the conditional model as it is; 0: unconditional
    label: int = option(-1, low=-1)  # one class for all; −1: all in turn
    eta: float = option(0.0, low=0.0, high=1.0)  # ddim: the share of fresh noise
    churn: float = option(0.0, low=0.0)  # heun: S_churn
    clip: bool = True  # keep denoised images in [−1, 1]


def make_parameterisation(config: DiffusionConfig) -> Parameterisation:
    if config.parameterisation == "edm":
        return EDM(
            config.sigma_data,
            config.p_mean,
            config.p_std,
            config.sigma_min,
            config.sigma_max,
            config.rho,
        )
    return {"flow": FlowMatching, "ddpm": DDPM}[config.parameterisation]()


class Diffusion:
    """One player, `model`: the weighted squared error of the denoised image.

    Args:
      config: its constants.
      model: the network.
      shape: of one image, (H, W, C).
    """

    turns = ("model",)

    def __init__(self, config: DiffusionConfig, model: UNet, shape: tuple[int, int, int]):
        self.config, self.model, self.shape = config, model, shape
        self.num_classes = model.num_classes
        self.noise = make_parameterisation(config)
        self._sample = jax.jit(self._walk, static_argnames=("sampler", "clip"))

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        x = to_signed(batch["image"])
        time_B = jnp.zeros(x.shape[0])
        return {"model": self.model.init(rng, x, time_B, batch.get("label"))["params"]}, {}

    def denoise(self, params, x, sigma, label_B, key_B=None) -> jax.Array:
        """D(x; σ) of the network; `label_B` = K means "no class"."""

        def network(x, time_B):
            return self.model.apply({"params": params}, x, time_B, label_B, key_B)

        return self.noise.denoise(network, x, sigma)

    def _error(self, params, batch, label_B, key_B, dropout_B):
        """Weighted squared error per image, averaged over its pixels."""
        y = to_signed(batch["image"])
        sigma = jax.vmap(self.noise.draw)(fold(key_B, 0))[:, None, None, None]
        x = y + sigma * normal(fold(key_B, 1), self.shape)
        error = self.denoise(params["model"], x, sigma, label_B, dropout_B) - y
        return (self.noise.weight(sigma) * error**2).mean((1, 2, 3))

    def loss(self, player, params, mutables, batch, key_B, step):
        """One noise level per image; labels are dropped at random for guidance."""
        label_B = batch.get("label")
        if self.num_classes:
            dropped_B = uniform(fold(key_B, 2)) < self.config.label_dropout
            label_B = jnp.where(dropped_B, self.num_classes, label_B)
        error_B = self._error(params, batch, label_B, key_B, fold(key_B, 3))
        return Mean.of(error_B, batch["weight"]), ({}, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` as in training, with labels and over several noise levels per image."""

        def draw(i):
            return self._error(params, batch, batch.get("label"), fold(key_B, 10 + i), None)

        error_B = jax.lax.map(draw, jnp.arange(self.config.eval_draws)).mean(0)
        return {"loss": Mean.of(error_B, batch["weight"])}

    def sample(self, params, mutables, key_N, request: Request) -> jax.Array:
        """uint8 images (N, H, W, C). Steps, guidance, η and churn do not recompile."""
        o: DiffusionSample = request.options
        return self._sample(
            params["model"],
            key_N,
            request.label_N,
            jnp.int32(o.steps),
            jnp.float32(o.guidance),
            jnp.float32(o.eta),
            jnp.float32(o.churn),
            sampler=o.sampler,
            clip=o.clip,
        )

    def _walk(self, params, key_N, label_N, steps, guidance, eta, churn, *, sampler, clip):
        n = key_N.shape[0]

        def denoiser(x, sigma):
            sigma_N = jnp.full((n, 1, 1, 1), sigma)
            denoised = self._guided(params, x, sigma_N, label_N, guidance)
            return jnp.clip(denoised, -1, 1) if clip else denoised

        x = samplers.sample(
            denoiser,
            self.noise.grid,
            key_N,
            self.shape,
            steps,
            sampler=sampler,
            eta=eta,
            churn=churn,
        )
        return to_bytes(x)

    def _guided(self, params, x, sigma, label_N, guidance):
        """Classifier-free guidance (Ho & Salimans 2022): D∅ + g (D_label − D∅)."""
        if not self.num_classes or label_N is None:
            return self.denoise(params, x, sigma, label_N)
        none_N = jnp.full_like(label_N, self.num_classes)

        def both():
            twice = jnp.concatenate([x, x]), jnp.concatenate([sigma, sigma])
            labels = jnp.concatenate([label_N, none_N])
            conditional, free = jnp.split(self.denoise(params, *twice, labels), 2)
            return free + guidance * (conditional - free)

        # Guidance is traced; at 1 the second evaluation would be multiplied by nothing.
        return jax.lax.cond(guidance == 1, lambda: self.denoise(params, x, sigma, label_N), both)
