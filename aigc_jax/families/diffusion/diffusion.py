"""Diffusion models: denoise images at every noise level, conditional on a class if asked.

Shapes: B batch, H height, W width, C channels, N samples, K classes, A numbers of augmentation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import class_conditions, label_of
from aigc_jax.core.errors import UserError
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Objective
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.diffusion import samplers, sigma_schedules
from aigc_jax.families.diffusion.diffusion_config import (
    DiffusionConfig,
    DiffusionSample,
    make_noise,
)
from aigc_jax.families.diffusion.ode_likelihood import log_likelihood
from aigc_jax.families.diffusion.preconditioning import Preconditioning
from aigc_jax.ops import augment as augment_lib
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.random import fold, normal, uniform

__all__ = ["Diffusion", "DiffusionConfig", "DiffusionSample", "GuidanceModel"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["denoise"]
)
@dataclasses.dataclass(frozen=True)
class GuidanceModel:
    """Another model's denoiser: denoise(params, x, σ, label_N)."""

    denoise: Callable[..., jax.Array]
    params: Any


class Diffusion(Objective):
    """One player, `model`: the weighted squared error of the denoised image.

    Args:
      config: its constants.
      model: the network.
      shape: of one image, (H, W, C).
      levels: how many values a pixel can have; 0: the data are floats such as latents, which are
        neither clipped nor rounded.
    """

    turns = ("model",)

    def __init__(self, config: Any, model: Any, shape: tuple[int, int, int], levels: int = 256):
        self.config, self.model, self.shape, self.levels = config, model, shape, levels
        self.num_classes = model.num_classes
        self.conditions = class_conditions(self.num_classes)
        self.init_shape = shape
        self.noise = self._noise()
        self._sample = jax.jit(self._walk, static_argnames=("sampler", "grid", "clip"))

    def _noise(self) -> Preconditioning:
        return make_noise(self.config)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        x = to_signed(batch["image"])
        time_B = jnp.zeros(x.shape[0])
        told = self._told(x.shape[0])
        variables = self.model.init(rng, x, time_B, batch.get("label"), **told)
        return {"model": variables["params"]}, {}

    def _told(self, size: int, augment_BA: jax.Array | None = None) -> dict[str, jax.Array]:
        """What the network is told besides time and class."""
        if not self.config.augment:
            return {}
        width = augment_lib.width(self.config.augment_kinds)
        return {"augment_BA": jnp.zeros((size, width)) if augment_BA is None else augment_BA}

    def denoise(self, params, x, sigma, label_B, key_B=None, augment_BA=None) -> jax.Array:
        """D(x; σ) of the network; `label_B` = K means "no class"."""
        told = self._told(x.shape[0], augment_BA)

        def network(x, time_B):
            return self.model.apply({"params": params}, x, time_B, label_B, key_B, **told)

        return self.noise.denoise(network, x, sigma)

    def _images(self, batch, key_B):
        """Clean images, those of training augmented, and what was done to them."""
        y = to_signed(batch["image"])
        if key_B is None or not self.config.augment:
            return y, None
        return augment_lib.augment(y, key_B, self.config.augment, self.config.augment_kinds)

    def _error(self, params, batch, label_B, key_B, u_B, dropout_B=None, augment_B=None):
        """Weighted squared error per image, averaged over its pixels; at the noise of u_B."""
        y, augment_BA = self._images(batch, augment_B)
        sigma = self.noise.draw(u_B)[:, None, None, None]
        x = y + sigma * normal(fold(key_B, 1), self.shape)
        denoised = self.denoise(params["model"], x, sigma, label_B, dropout_B, augment_BA)
        return (self.noise.weight(sigma) * (denoised - y) ** 2).mean((1, 2, 3))

    def _labels(self, batch, key_B):
        """Labels of which some are dropped at random, for guidance."""
        label_B = batch.get("label")
        if not self.num_classes:
            return label_B
        dropped_B = uniform(key_B) < self.config.label_dropout
        return jnp.where(dropped_B, self.num_classes, label_B)

    def loss(self, player, params, mutables, batch, key_B, step):
        """One noise level per image."""
        label_B, u_B = self._labels(batch, fold(key_B, 2)), uniform(fold(key_B, 0))
        keys = fold(key_B, 3), fold(key_B, 4)
        error_B = self._error(params, batch, label_B, key_B, u_B, *keys)
        return Mean.of(error_B, batch["weight"]), ({}, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` as in training, with labels, and of each quarter of the noise levels, 1 the least.

        The levels of an image are spread over all that training draws.
        """
        draws = self.config.eval_draws

        def draw(i):
            own_B = fold(key_B, 10 + i)
            u_B = (i + uniform(fold(own_B, 0))) / draws
            return u_B, self._error(params, batch, batch.get("label"), own_B, u_B)

        u_DB, error_DB = jax.lax.map(draw, jnp.arange(draws))
        found = {"loss": Mean.of(error_DB.mean(0), batch["weight"])}
        for quarter in range(4):
            weight_DB = batch["weight"] * (jnp.floor(4 * u_DB) == quarter)
            found[f"loss_quarter_{quarter + 1}"] = Mean.of(error_DB, weight_DB)
        return found

    def likelihood(self, params, mutables, batch, key_B) -> Metrics:
        """`bits_per_dim` of the pixels, by the exact likelihood of uniformly dequantised images.

        A pixel of L levels is taken to be anywhere in its bin of width 2 / (L − 1) in [−1, 1], so
        the density's integral over the bin is bounded by Jensen's inequality, as usual.

        Raises:
          UserError: if the data are no pixels.
        """
        if not self.levels:
            raise UserError("eval.likelihood is of pixels, which this model does not draw: set it"
                            " to 0")  # fmt: skip
        width = 2 / (self.levels - 1)
        x = to_signed(batch["image"]) + (uniform(fold(key_B, 0), self.shape) - 0.5) * width
        probe = jnp.where(uniform(fold(key_B, 1), self.shape) < 0.5, -1.0, 1.0)

        def denoiser(x, sigma):
            sigma_B = jnp.full((x.shape[0], 1, 1, 1), sigma)
            return self.denoise(params["model"], x, sigma_B, batch.get("label"))

        schedule = self.noise.schedule
        ends = schedule.sigma_min, schedule.sigma_max
        nats_B = log_likelihood(denoiser, x, probe, *ends, self.config.likelihood_steps)
        bits_B = -(nats_B / x[0].size + jnp.log(width)) / jnp.log(2)
        return {"bits_per_dim": Mean.rows(bits_B, batch["weight"])}

    def autoguidance(self, other: Any, params: dict[str, Any]) -> GuidanceModel:
        """`SampleRequest.guidance_model` from another run (Karras et al. 2024).

        Raises:
          UserError: if it is no diffusion of the same images and classes.
        """
        if not isinstance(other, Diffusion):
            raise UserError("sample.guide is a run of another family: name one of diffusion")
        if other.shape != self.shape or other.num_classes not in (0, self.num_classes):
            raise UserError(
                f"sample.guide draws images of {other.shape} in {other.num_classes} classes, this"
                f" run of {self.shape} in {self.num_classes}: name a run on the same data"
            )
        return GuidanceModel(other.denoise, params["model"])

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """uint8 images (N, H, W, C); floats if the data are floats.

        Nothing but the sampler, the grid and whether there is an image, a mask or a guide
        recompiles.
        """
        o = request.options
        sigma_schedules.check_sigma_schedule(o.grid, self.noise.schedule, o.steps)
        given, mask_NHW = {}, request.init.get("inpaint_mask")
        if "image" in request.init:
            strength = o.strength
            if strength < 0:
                strength = 0.6 if mask_NHW is None else 1.0
            given = dict(
                image=to_signed(jnp.asarray(request.init["image"])),
                strength=jnp.float32(strength),
                redrawn=mask_NHW,
                resample=jnp.int32(o.resample),
            )
        names = ("guidance", "guidance_low", "guidance_high", "eta", "rho", "shift",
                 "churn", "churn_low", "churn_high", "churn_noise")  # fmt: skip
        numbers = {name: jnp.float32(getattr(o, name)) for name in names}
        return self._sample(
            params["model"],
            key_N,
            label_of(request.conditions),
            jnp.int32(o.steps),
            numbers,
            request.guidance_model,
            given,
            sampler=o.sampler,
            grid=o.grid,
            clip=o.clip and self.levels > 0,
        )

    def _walk(self, params, key_N, label_N, steps, numbers, guide, given, *, sampler, grid, clip):
        n = key_N.shape[0]

        def denoiser(x, sigma):
            sigma_N = jnp.full((n, 1, 1, 1), sigma)
            denoised = self._guided(params, x, sigma_N, label_N, numbers, guide)
            return jnp.clip(denoised, -1, 1) if clip else denoised

        c = numbers
        x = samplers.sample(
            denoiser,
            sigma_schedules.make_sigma_schedule(grid, self.noise.schedule, c["rho"], c["shift"]),
            key_N,
            self.shape,
            steps,
            sampler=sampler,
            eta=c["eta"],
            churn=samplers.Churn(c["churn"], c["churn_low"], c["churn_high"], c["churn_noise"]),
            given=samplers.InitImage(**given) if given else None,
            jump=self._jump(params, label_N, c["guidance"], sampler),
        )
        return to_bytes(x) if self.levels else x

    def _jump(self, params, label_N, guidance, sampler) -> samplers.FlowMap | None:
        """A way to take steps of its own, if the sampler is it."""
        return None

    def _guided(self, params, x, sigma, label_N, numbers, guide=None):
        """D₀ + g (D − D₀), with D₀ the guide's, or the unconditional one of this model.

        Classifier-free guidance (Ho & Salimans 2022) or autoguidance (Karras et al. 2024), in an
        interval of noise levels if asked (Kynkäänniemi et al. 2024).
        """
        guidance, low, high = (numbers[f"guidance{end}"] for end in ("", "_low", "_high"))

        def alone(label):
            return self.denoise(params, x, sigma, label)

        def by_guide():
            worse = guide.denoise(guide.params, x, sigma, label_N)
            return worse + guidance * (alone(label_N) - worse)

        def by_class():
            network = functools.partial(self.denoise, params)
            return self._twice(network, (x, sigma), label_N, guidance)

        if guide is None and (not self.num_classes or label_N is None):
            return alone(label_N)
        level = sigma[0, 0, 0, 0]
        inside = (level >= low) & ((level <= high) | (high == 0))
        # Guidance is traced; at 1 the second evaluation would be multiplied by nothing.
        return jax.lax.cond(
            (guidance == 1) | ~inside, lambda: alone(label_N), by_guide if guide else by_class
        )

    def _twice(self, network, arguments, label_N, guidance):
        """Free + g (conditional − free), both in one call of `network(*arguments, label_N)`."""
        none_N = jnp.full_like(label_N, self.num_classes)
        twice = [jnp.concatenate([a, a]) for a in arguments]
        both = network(*twice, jnp.concatenate([label_N, none_N]))
        conditional, free = jnp.split(both, 2)
        return free + guidance * (conditional - free)
