"""Diffusion models: denoise examples at every noise level, conditional on a class and more.

Shapes: B batch, N samples, … spatial axes and channels of an example, A numbers that describe an
augmentation.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import (
    Condition,
    Conditions,
    ConditionSpec,
    class_conditions,
    conditions_of,
    drop,
)
from aigc_jax.core.errors import UserError
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.diffusion import sigma_schedules
from aigc_jax.families.diffusion.diffusion_config import DiffusionConfig, DiffusionSample
from aigc_jax.families.diffusion.guidance import Guidance, GuidanceModel, classifier_free
from aigc_jax.families.diffusion.ode_likelihood import log_likelihood
from aigc_jax.families.diffusion.preconditioning import Preconditioning, make_preconditioning
from aigc_jax.families.diffusion.sampler_steps import Churn, FlowMap, InitImage
from aigc_jax.families.diffusion.samplers import sample
from aigc_jax.ops import augment as augment_lib
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.per_example import expand_like, mean_per_example
from aigc_jax.ops.random import fold, normal, uniform

__all__ = ["Diffusion", "DiffusionConfig", "DiffusionSample", "GuidanceModel"]

# Options of sampling that are numbers and therefore traced.
TRACED = ("guidance", "guidance_low", "guidance_high", "eta", "rho", "shift",
          "churn", "churn_low", "churn_high", "churn_noise")  # fmt: skip


class Diffusion(Objective):
    """One player, `model`: the weighted squared error of the denoised example.

    Args:
      config: a `DiffusionConfig`.
      model: the network, called with (x, time_B, conditions, key_B).
      shape: of one example: (T, C), (H, W, C), (T, H, W, C), ….
      levels: how many values a number of the data can have; 0: the data are floats such as latents,
        which are neither clipped nor rounded.
      conditions: what the model is given; None: the class, if the network has classes.
      field: the batch's field that is modelled.

    Raises:
      UserError: for augmentation that does not fit the shape.
    """

    turns = ("model",)

    def __init__(
        self,
        config: Any,
        model: nn.Module,
        shape: tuple[int, ...],
        levels: int = 256,
        conditions: dict[str, ConditionSpec] | None = None,
        field: str = "image",
    ):
        self.config, self.model, self.shape, self.levels = config, model, shape, levels
        self.conditions = class_conditions(model.num_classes) if conditions is None else conditions
        self.field, self.init_shape = field, shape
        if config.augment:
            dims = len(shape) - 1
            augment_lib.check_dims(config.augment_kinds, dims, "objective.augment_kinds")
        self.preconditioning = self._preconditioning()
        static = ("sampler", "sigma_schedule", "clip")
        self._sample = jax.jit(self._trajectory, static_argnames=static)

    def _preconditioning(self) -> Preconditioning:
        return make_preconditioning(self.config)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        x = to_signed(batch[self.field])
        conditions = self._with_defaults(conditions_of(batch, self.conditions), x.shape[0])
        variables = self.model.init(rng, x, jnp.zeros(x.shape[0]), conditions)
        return {"model": variables["params"]}, {}

    def _with_defaults(self, conditions: Conditions, size: int) -> Conditions:
        """The conditions with those that are not given but have a value all the same."""
        if not self.config.augment:
            return conditions
        width = augment_lib.width(self.config.augment_kinds, len(self.shape) - 1)
        return {"augmentation": Condition.of(jnp.zeros((size, width))), **conditions}

    def denoise(
        self,
        params: Any,
        x: jax.Array,
        sigma_B: jax.Array,
        conditions: Conditions,
        key_B: jax.Array | None = None,
    ) -> jax.Array:
        """D(x; σ) of the network; `key_B`: keys of its dropout."""
        conditions = self._with_defaults(conditions, x.shape[0])

        def network(x, time_B):
            return self.model.apply({"params": params}, x, time_B, conditions, key_B)

        return self.preconditioning.denoise(network, x, sigma_B)

    def _examples(self, batch: Batch, key_B: jax.Array | None) -> tuple[jax.Array, Conditions]:
        """Clean examples, augmented with these keys, and the condition that says how."""
        y = to_signed(batch[self.field])
        if key_B is None or not self.config.augment:
            return y, {}
        y, label_BA = augment_lib.augment(y, key_B, self.config.augment, self.config.augment_kinds)
        return y, {"augmentation": Condition.of(label_BA)}

    def _error(
        self,
        params: Any,
        batch: Batch,
        conditions: Conditions,
        key_B: jax.Array,
        u_B: jax.Array,
        train_key_B: jax.Array | None = None,
    ) -> jax.Array:
        """Weighted squared error of each example (B,), averaged over its values.

        Args:
          params: of the network.
          batch: the examples.
          conditions: those given.
          key_B: of the noise.
          u_B: quantiles of the noise level.
          train_key_B: of dropout and augmentation; None: without.
        """
        dropout_B, augment_B = self._train_keys(train_key_B)
        y, augmentation = self._examples(batch, augment_B)
        sigma_B = self.preconditioning.sigma_quantile(u_B)
        x = y + expand_like(sigma_B, y) * normal(fold(key_B, 1), self.shape)
        denoised = self.denoise(params, x, sigma_B, conditions | augmentation, dropout_B)
        weight = expand_like(self.preconditioning.weight(sigma_B), y)
        return mean_per_example(weight * (denoised - y) ** 2)

    def _train_keys(self, key_B: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
        """Keys of dropout and of augmentation."""
        return (None, None) if key_B is None else (fold(key_B, 3), fold(key_B, 4))

    def _dropped(self, batch: Batch, key_B: jax.Array) -> Conditions:
        """Conditions, all of an example dropped at random, for guidance."""
        conditions = conditions_of(batch, self.conditions)
        return drop(conditions, uniform(fold(key_B, 2)) < self.config.condition_dropout)

    def loss(self, player, params, mutables, batch, key_B, step):
        """One noise level per example."""
        conditions, u_B = self._dropped(batch, key_B), uniform(fold(key_B, 0))
        error_B = self._error(params["model"], batch, conditions, key_B, u_B, key_B)
        return Mean.of(error_B, batch["weight"]), ({}, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` without dropout, and of each quarter of the noise levels, 1 the lowest.

        The noise levels of an example are spread over the distribution of training.
        """
        draws, conditions = self.config.eval_draws, conditions_of(batch, self.conditions)

        def draw(i):
            own_B = fold(key_B, 10 + i)
            u_B = (i + uniform(fold(own_B, 0))) / draws
            return u_B, self._error(params["model"], batch, conditions, own_B, u_B)

        u_DB, error_DB = jax.lax.map(draw, jnp.arange(draws))
        metrics = {"loss": Mean.of(error_DB.mean(0), batch["weight"])}
        for quarter in range(4):
            weight_DB = batch["weight"] * (jnp.floor(4 * u_DB) == quarter)
            metrics[f"loss_quarter_{quarter + 1}"] = Mean.of(error_DB, weight_DB)
        return metrics

    def exact_likelihood(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """`bits_per_dim` by the exact likelihood of uniformly dequantised data.

        A value of L levels is uniform in its bin of width 2 / (L − 1) in [−1, 1], so the density's
        integral over the bin is bounded by Jensen's inequality.

        Raises:
          UserError: if the data are floats.
        """
        if not self.levels:
            raise UserError(
                "eval.likelihood_examples is of data with levels, such as pixels, but this"
                " model's are floats: set it to 0"
            )
        width = 2 / (self.levels - 1)
        x = to_signed(batch[self.field])
        x += (uniform(fold(key_B, 0), self.shape) - 0.5) * width
        probe = jnp.where(uniform(fold(key_B, 1), self.shape) < 0.5, -1.0, 1.0)
        conditions = conditions_of(batch, self.conditions)

        def denoiser(x, sigma):
            return self.denoise(params["model"], x, jnp.full(len(x), sigma), conditions)

        schedule = self.preconditioning.schedule
        ends = schedule.sigma_min, schedule.sigma_max
        nats_B = log_likelihood(denoiser, x, probe, *ends, self.config.likelihood_steps)
        bits_B = -(nats_B / x[0].size + jnp.log(width)) / jnp.log(2)
        return {"bits_per_dim": Mean.rows(bits_B, batch["weight"])}

    def autoguidance(self, other: Any, params: Params) -> GuidanceModel:
        """`SampleRequest.guidance_model` from another run (Karras et al. 2024).

        Raises:
          UserError: if it is not a diffusion model of the same data and conditions.
        """
        if not isinstance(other, Diffusion):
            raise UserError(
                "sample.guidance_workdir is a run of another family: name one of diffusion"
            )
        shared = all(self.conditions.get(name) == c for name, c in other.conditions.items())
        if other.shape != self.shape or not shared:
            raise UserError(
                f"sample.guidance_workdir is a model of {other.shape} with the conditions"
                f" {other.conditions}, this one of {self.shape} with {self.conditions}: name a run"
                " on the same data"
            )
        return GuidanceModel(other.denoise, params["model"])

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """uint8 examples (N, …); floats if the data are floats.

        Only the sampler, the sigma schedule, clipping and whether there is an init image, a mask or
        a guidance model recompile.
        """
        o = request.options
        sigma_schedules.check_sigma_schedule(
            o.sigma_schedule, self.preconditioning.schedule, o.steps
        )
        return self._sample(
            params["model"],
            key_N,
            request.conditions,
            jnp.int32(o.steps),
            {name: jnp.float32(getattr(o, name)) for name in TRACED},
            request.guidance_model,
            self._init_image(request),
            sampler=o.sampler,
            sigma_schedule=o.sigma_schedule,
            clip=o.clip and self.levels > 0,
        )

    def _init_image(self, request: SampleRequest) -> dict[str, Any]:
        """The fields of `InitImage`; empty without one."""
        o, mask = request.options, request.init.get("inpaint_mask")
        if self.field not in request.init:
            return {}
        strength = o.strength if o.strength >= 0 else 0.6 if mask is None else 1.0
        return dict(
            image=to_signed(jnp.asarray(request.init[self.field])),
            strength=jnp.float32(strength),
            inpaint_mask=mask,
            resample=jnp.int32(o.resample),
        )

    def _trajectory(
        self,
        params: Any,
        key_N: jax.Array,
        conditions: Conditions,
        steps: jax.Array,
        numbers: dict[str, jax.Array],
        guidance_model: GuidanceModel | None,
        init_image: dict[str, Any],
        *,
        sampler: str,
        sigma_schedule: str,
        clip: bool,
    ) -> jax.Array:
        c, schedule = numbers, self.preconditioning.schedule
        guidance = Guidance(c["guidance"], c["guidance_low"], c["guidance_high"])

        def denoiser(x, sigma):
            denoised = self._guided(params, x, sigma, conditions, guidance, guidance_model)
            return jnp.clip(denoised, -1, 1) if clip else denoised

        x = sample(
            denoiser,
            sigma_schedules.make_sigmas(sigma_schedule, schedule, c["rho"], c["shift"]),
            key_N,
            self.shape,
            steps,
            sampler=sampler,
            eta=c["eta"],
            churn=Churn(c["churn"], c["churn_low"], c["churn_high"], c["churn_noise"]),
            init_image=InitImage(**init_image) if init_image else None,
            flow_map=self._flow_map(params, conditions, c["guidance"]),
        )
        return to_bytes(x) if self.levels else x

    def _flow_map(self, params: Any, conditions: Conditions, scale: jax.Array) -> FlowMap | None:
        """The model's own way to take steps of any length, if it has one."""
        return None

    def _guided(
        self,
        params: Any,
        x: jax.Array,
        sigma: jax.Array,
        conditions: Conditions,
        guidance: Guidance,
        guidance_model: GuidanceModel | None = None,
    ) -> jax.Array:
        """D₀ + g (D − D₀), with D₀ the guidance model's or this one's without conditions."""
        sigma_N = jnp.full(len(x), sigma)

        def plain():
            return self.denoise(params, x, sigma_N, conditions)

        def autoguided(weaker_model: GuidanceModel) -> jax.Array:
            weaker = weaker_model.denoise(weaker_model.params, x, sigma_N, conditions)
            return weaker + guidance.scale * (plain() - weaker)

        def guided():
            def network(x, sigma_N, conditions):
                return self.denoise(params, x, sigma_N, conditions)

            return classifier_free(network, (x, sigma_N), conditions, guidance.scale)

        if guidance_model is None and not conditions:
            return plain()
        # The scale is traced; at 1 the second evaluation would be multiplied by 0.
        if guidance_model is not None:
            guided = functools.partial(autoguided, guidance_model)
        return jax.lax.cond(guidance.is_on(sigma), guided, plain)
