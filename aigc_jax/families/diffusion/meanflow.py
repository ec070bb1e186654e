"""MeanFlow: a diffusion model whose network can take a step of any length at once.

Geng et al. (2025), "Mean Flows for One-step Generative Modeling". On the straight paths of flow
matching, z_t = (1 − t) y + t n with velocity v = n − y, the network answers the average velocity
u(z_t, r, t) between two times r ≤ t, so that z_r = z_t − (t − r) u. Differentiating that by t gives
the identity by which it is trained, u = v − (t − r) du/dt (eq. 6). At r = t it is the velocity: the
model is one of flow matching too, and every sampler works with it.
Shapes: B batch, H height, W width, C channels, K classes.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.diffusion import samplers
from aigc_jax.families.diffusion.diffusion import Diffusion
from aigc_jax.families.diffusion.diffusion_config import AUGMENTATIONS, GEOMETRY, DiffusionSample
from aigc_jax.families.diffusion.noise_schedules import Flow
from aigc_jax.families.diffusion.preconditioning import LogNormal, Preconditioning
from aigc_jax.ops import dispatch
from aigc_jax.ops.random import fold, normal, uniform

Average = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # u(z_t, t, t − r)


@dataclasses.dataclass(frozen=True)
class MeanFlowConfig:
    t_mean: float = -0.4  # r and t are two draws of logit-normals with this mean …
    t_std: float = option(1.0, low=1e-6)  # … and deviation
    spans: float = option(0.25, low=0.0, high=1.0)  # share of images with r < t; the rest: r = t
    adaptive: float = option(1.0, low=0.0)  # p: errors count 1 / (‖error‖² + c)^p; 0: plain
    guidance: float = option(1.0, low=0.0)  # ω: classifier-free guidance learned in training
    label_dropout: float = option(0.1, low=0.0, high=1.0)
    augment: float = option(0.0, low=0.0, high=1.0)  # probability of each; the network is told
    augment_kinds: tuple[str, ...] = option(GEOMETRY, choices=AUGMENTATIONS, nonempty=True)
    eval_draws: int = option(8, low=1, resumable=True)  # pairs of times per held-out image
    likelihood_steps: int = option(
        64, low=1, resumable=True
    )  # of the ODE, when eval.likelihood asks for it


@dataclasses.dataclass(frozen=True)
class MeanFlowSample(DiffusionSample):
    sampler: str = option("meanflow", choices=("meanflow", *samplers.SAMPLERS))
    steps: int = option(1, low=1)


def target(
    u: Average, z: jax.Array, t: jax.Array, span: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """u(z_t, r, t), and v − (t − r) du/dt, which it is to equal (eq. 10).

    Args:
      u: the average velocity as a function of z_t, t and t − r.
      z: where the path is at t.
      t: (B, 1, 1, 1).
      span: t − r.
      v: the velocity at t. The total derivative along the path is v · ∂u/∂z + ∂u/∂t at constant r.
    """
    one = jnp.ones_like(t)
    with dispatch.override(attention="reference"):  # no other form has tangents
        here, slope = jax.jvp(u, (z, t, span), (v, one, one))
    return here, jax.lax.stop_gradient(v - span * slope)


class MeanFlow(Diffusion):
    """One player, `model`: the error of the average velocity, weighted by its own size."""

    CONSTANT = 1e-3  # c of the adaptive weight, in units of an image's mean squared error

    def _noise(self) -> Preconditioning:
        return Preconditioning("flow", Flow(), LogNormal(self.config.t_mean, self.config.t_std))

    def _told(self, size, augment_BA=None, span_B=None):
        told = super()._told(size, augment_BA)
        return told | {"span_B": jnp.zeros(size) if span_B is None else span_B}

    def average(self, params, z, t, span, label_B, key_B=None, augment_BA=None) -> jax.Array:
        """u(z_t, t − span, t) of the network; times are (B, 1, 1, 1)."""
        told = self._told(z.shape[0], augment_BA, 1000 * span[:, 0, 0, 0])
        time_B = 1000 * t[:, 0, 0, 0]
        return self.model.apply({"params": params}, z, time_B, label_B, key_B, **told)

    def _errors(self, params, batch, label_B, key_B, u_B, dropout_B=None, augment_B=None):
        """Squared error per image, averaged over its pixels; one of the times is that of u_B."""
        y, augment_BA = self._images(batch, augment_B)
        pair_B2 = jnp.stack([u_B, uniform(fold(key_B, 5))], -1)
        sigma_B2 = self.noise.draw(pair_B2)
        t_B2 = sigma_B2 / (1 + sigma_B2)
        apart_B = uniform(fold(key_B, 6)) < self.config.spans
        span_B = jnp.where(apart_B, t_B2.max(-1) - t_B2.min(-1), 0)
        t, span = (a[:, None, None, None] for a in (t_B2.max(-1), span_B))
        n = normal(fold(key_B, 1), self.shape)
        z, v = (1 - t) * y + t * n, n - y

        def u(z, t, span):
            return self.average(params, z, t, span, label_B, dropout_B, augment_BA)

        v = self._guide_velocity(params, z, t, v, label_B, augment_BA)
        here, goal = target(u, z, t, span, v)
        return ((here - goal) ** 2).mean((1, 2, 3))

    def _guide_velocity(self, params, z, t, v, label_B, augment_BA):
        """ω v + (1 − ω) u∅(z_t, t, t), with which guidance is learned (eq. 19)."""
        omega = self.config.guidance
        if omega == 1 or not self.num_classes:
            return v
        none_B = jnp.full_like(label_B, self.num_classes)
        free = self.average(params, z, t, jnp.zeros_like(t), none_B, None, augment_BA)
        guided = omega * v + (1 - omega) * jax.lax.stop_gradient(free)
        return jnp.where((label_B == self.num_classes)[:, None, None, None], v, guided)

    def loss(self, player, params, mutables, batch, key_B, step):
        """One pair of times per image; `error` is the loss before its adaptive weight."""
        label_B, u_B = self._labels(batch, fold(key_B, 2)), uniform(fold(key_B, 0))
        keys = fold(key_B, 3), fold(key_B, 4)
        error_B = self._errors(params["model"], batch, label_B, key_B, u_B, *keys)
        weight_B = jax.lax.stop_gradient(error_B + self.CONSTANT) ** -self.config.adaptive
        metrics = {"error": Mean.of(error_B, batch["weight"])}
        return Mean.of(weight_B * error_B, batch["weight"]), (metrics, mutables)

    def _error(self, params, batch, label_B, key_B, u_B, dropout_B=None, augment_B=None):
        # For `evaluate`: without the adaptive weight, under which every loss is about 1.
        return self._errors(params["model"], batch, label_B, key_B, u_B, dropout_B, augment_B)

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        if request.guidance_model is not None and request.options.sampler == "meanflow":
            raise UserError("sample.sampler=meanflow takes no guide: choose another sampler, such"
                            " as heun with 18 steps")  # fmt: skip
        return super().sample(params, mutables, key_N, request)

    def _jump(self, params, label_N, guidance, sampler):
        """z_r = z_t − (t − r) u(z_t, r, t) in the coordinates x = z_t / (1 − t)."""
        if sampler != "meanflow":
            return None

        def average(z, t, span, label):
            return self.average(params, z, t, span, label)

        def jump(x, sigma, following):
            t, r = sigma / (1 + sigma), following / (1 + following)
            z = (1 - t) * x
            times = (jnp.full((x.shape[0], 1, 1, 1), s) for s in (t, t - r))
            arguments = z, *times

            def guided():
                return self._twice(average, arguments, label_N, guidance)

            if not self.num_classes or label_N is None:
                u = average(*arguments, label_N)
            else:
                u = jax.lax.cond(guidance == 1, lambda: average(*arguments, label_N), guided)
            return (z - (t - r) * u) / (1 - r)

        return jump
