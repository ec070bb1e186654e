"""MeanFlow: a diffusion model whose network can take a step of any length at once.

Geng et al. (2025), "Mean Flows for One-step Generative Modeling". On the straight paths of flow
matching, z_t = (1 − t) y + t n with velocity v = n − y, the network's output is the average
velocity u(z_t, r, t) between two times r ≤ t, so that z_r = z_t − (t − r) u. The derivative by t
gives the identity by which it is trained, u = v − (t − r) du/dt (eq. 6). At r = t it is the
velocity: the model is also one of flow matching, and every sampler works with it.
Shapes: B batch, … axes of an example.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Condition, Conditions, any_present, null
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.diffusion.diffusion import Diffusion
from aigc_jax.families.diffusion.diffusion_config import GEOMETRY, DiffusionSample
from aigc_jax.families.diffusion.guidance import classifier_free
from aigc_jax.families.diffusion.noise_distributions import LogNormal
from aigc_jax.families.diffusion.noise_schedules import Flow
from aigc_jax.families.diffusion.preconditioning import Preconditioning
from aigc_jax.families.diffusion.sampler_steps import SAMPLERS
from aigc_jax.ops import dispatch
from aigc_jax.ops.augment import AUGMENTATIONS
from aigc_jax.ops.per_example import expand_like, mean_per_example
from aigc_jax.ops.random import fold, normal, uniform

AverageVelocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # u(z_t, t, t − r)


@dataclasses.dataclass(frozen=True)
class MeanFlowConfig:
    t_mean: float = -0.4  # r and t are two draws of a logit-normal with this mean …
    t_std: float = option(1.0, low=1e-6)  # … and standard deviation
    flow_ratio: float = option(0.75, low=0.0, high=1.0)  # share of examples with r = t
    adaptive: float = option(1.0, low=0.0)  # p: errors weigh 1 / (‖error‖² + c)^p; 0: 1
    guidance: float = option(1.0, low=0.0)  # ω: classifier-free guidance learned in training
    condition_dropout: float = option(0.1, low=0.0, high=1.0)
    augment: float = option(0.0, low=0.0, high=1.0)  # probability of each; a condition, too
    augment_kinds: tuple[str, ...] = option(GEOMETRY, choices=AUGMENTATIONS, nonempty=True)
    eval_draws: int = option(8, low=1, resumable=True)  # pairs of times per held-out example
    # Steps of the ODE for eval.likelihood_examples.
    likelihood_steps: int = option(64, low=1, resumable=True)


@dataclasses.dataclass(frozen=True)
class MeanFlowSample(DiffusionSample):
    sampler: str = option("meanflow", choices=SAMPLERS, flag="Sampler.")
    steps: int = option(1, low=1, flag="Number of sampling steps.")


def output_and_target(
    u: AverageVelocity, z: jax.Array, t_B: jax.Array, delta_t_B: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """u(z_t, r, t), and its target v − (t − r) du/dt (eq. 10).

    Args:
      u: the average velocity as a function of z_t, t and t − r.
      z: z_t (B, …).
      t_B: t.
      delta_t_B: t − r.
      v: the velocity at t. The total derivative along the path is v · ∂u/∂z + ∂u/∂t at constant r.
    """
    one_B = jnp.ones_like(t_B)
    with dispatch.override(attention="reference"):  # the other implementations have no tangents
        output, slope = jax.jvp(u, (z, t_B, delta_t_B), (v, one_B, one_B))
    return output, jax.lax.stop_gradient(v - expand_like(delta_t_B, z) * slope)


class MeanFlow(Diffusion):
    """One player, `model`: the error of the average velocity, weighted by its own size."""

    CONSTANT = 1e-3  # c of the adaptive weight, in units of an example's mean squared error

    def _preconditioning(self) -> Preconditioning:
        return Preconditioning("flow", Flow(), LogNormal(self.config.t_mean, self.config.t_std))

    def _with_defaults(self, conditions: Conditions, size: int) -> Conditions:
        conditions = super()._with_defaults(conditions, size)
        return {"delta_t": Condition.of(jnp.zeros(size)), **conditions}

    def average_velocity(
        self,
        params: Any,
        z: jax.Array,
        t_B: jax.Array,
        delta_t_B: jax.Array,
        conditions: Conditions,
        key_B: jax.Array | None = None,
    ) -> jax.Array:
        """u(z_t, t − delta_t, t) of the network; `key_B`: keys of its dropout."""
        conditions = {**conditions, "delta_t": Condition.of(1000 * delta_t_B)}
        conditions = self._with_defaults(conditions, z.shape[0])
        velocity = self.model.apply({"params": params}, z, 1000 * t_B, conditions, key_B)
        return cast(jax.Array, velocity)

    def _error(self, params, batch, conditions, key_B, u_B, train_key_B=None):
        """Squared error of each example (B,), averaged over its values.

        One of its two times is the quantile u_B. It lacks the adaptive weight, with which every
        loss is about 1.
        """
        dropout_B, augment_B = self._train_keys(train_key_B)
        y, augmentation = self._examples(batch, augment_B)
        u_B2 = jnp.stack([u_B, uniform(fold(key_B, 5))], -1)
        sigma_B2 = self.preconditioning.sigma_quantile(u_B2)
        t_B2 = sigma_B2 / (1 + sigma_B2)
        apart_B = uniform(fold(key_B, 6)) < 1 - self.config.flow_ratio
        t_B = t_B2.max(-1)
        delta_t_B = jnp.where(apart_B, t_B - t_B2.min(-1), 0)
        t, n = expand_like(t_B, y), normal(fold(key_B, 1), self.shape)
        z, v = (1 - t) * y + t * n, n - y

        def u(z, t_B, delta_t_B):
            given = conditions | augmentation
            return self.average_velocity(params, z, t_B, delta_t_B, given, dropout_B)

        v = self._guided_velocity(params, z, t_B, v, conditions, augmentation)
        output, target = output_and_target(u, z, t_B, delta_t_B, v)
        return mean_per_example((output - target) ** 2)

    def _guided_velocity(
        self,
        params: Any,
        z: jax.Array,
        t_B: jax.Array,
        v: jax.Array,
        conditions: Conditions,
        augmentation: Conditions,
    ) -> jax.Array:
        """ω v + (1 − ω) u∅(z_t, t, t), with which guidance is learned (eq. 19)."""
        omega = self.config.guidance
        if omega == 1 or not conditions:
            return v
        given = null(conditions) | augmentation
        free = self.average_velocity(params, z, t_B, jnp.zeros_like(t_B), given)
        guided = omega * v + (1 - omega) * jax.lax.stop_gradient(free)
        return jnp.where(expand_like(any_present(conditions, len(z)), z), guided, v)

    def loss(self, player, params, mutables, batch, key_B, step):
        """One pair of times per example; `error` is the loss before its adaptive weight."""
        conditions, u_B = self._dropped(batch, key_B), uniform(fold(key_B, 0))
        error_B = self._error(params["model"], batch, conditions, key_B, u_B, key_B)
        weight_B = jax.lax.stop_gradient(error_B + self.CONSTANT) ** -self.config.adaptive
        metrics = {"error": Mean.of(error_B, batch["weight"])}
        return Mean.of(weight_B * error_B, batch["weight"]), (metrics, mutables)

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """As that of `Diffusion`; the flow map takes no guidance model."""
        if request.guidance_model is not None and request.options.sampler == "meanflow":
            raise UserError(
                "sample.sampler=meanflow takes no sample.guidance_workdir: choose another sampler,"
                " such as heun with 18 steps"
            )
        return super().sample(params, mutables, key_N, request)

    def _flow_map(self, params, conditions, scale):
        """z_r = z_t − (t − r) u(z_t, r, t) in the coordinates x = z_t / (1 − t)."""

        def u(z, t_N, delta_t_N, conditions):
            return self.average_velocity(params, z, t_N, delta_t_N, conditions)

        def flow_map(x, sigma, sigma_next):
            t, r = sigma / (1 + sigma), sigma_next / (1 + sigma_next)
            z = (1 - t) * x
            arrays = z, jnp.full(len(x), t), jnp.full(len(x), t - r)

            def plain():
                return u(*arrays, conditions)

            def guided():
                return classifier_free(u, arrays, conditions, scale)

            average = jax.lax.cond(scale == 1, plain, guided) if conditions else plain()
            return (z - (t - r) * average) / (1 - r)

        return flow_map
