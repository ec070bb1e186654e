"""Samplers, schedules, predictions and weightings of one's own, named in a config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from aigc_jax.core.errors import UserError
from aigc_jax.core.registry import Registry
from aigc_jax.families.diffusion import (
    noise_distributions,
    noise_schedules,
    preconditioning,
    sampler_steps,
    sigma_schedules,
)

REGISTRIES = (
    noise_distributions.NOISE_DISTRIBUTIONS,
    noise_schedules.NOISE_SCHEDULES,
    preconditioning.PREDICTIONS,
    preconditioning.WEIGHTINGS,
    sampler_steps.SAMPLERS,
    sigma_schedules.SIGMA_SCHEDULES,
)
KEY_B = jax.random.split(jax.random.key(0), 8)


class ToTheEnd(sampler_steps.Sampler):
    """Every step takes the denoised example itself."""

    def step(self, denoiser, x, step, memory):
        return denoiser(x, step.sigma), memory


class Halves(noise_distributions.Uniform):
    def quantile(self, u, schedule):
        return jnp.full_like(u, 0.5)


@dataclasses.dataclass(frozen=True)
class Narrow(noise_schedules.Flow):
    t_max: float = 0.75


to_the_end = ToTheEnd()
halves = lambda config: Halves()  # noqa: E731
narrow = lambda config: Narrow()  # noqa: E731
ones = lambda schedule, options: lambda i, steps: jnp.ones_like(i, jnp.float32)  # noqa: E731


def zero_output(sigma, sigma_data):
    """D(x; σ) = x / 2, whatever the network says."""
    return 0.5 + 0 * sigma, 0 * sigma, 1 + 0 * sigma


def tenfold(sigma, preconditioning):
    return jnp.full_like(sigma, 10.0)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_items", dict(registry._items))


def own(name):
    return f"{__name__}:{name}"


def test_parts_of_ones_own_by_import_path_or_by_name():
    sigma_schedules.SIGMA_SCHEDULES.register("ones", ones)
    sections = dict(
        objective=dict(
            schedule=own("narrow"), noise_distribution=own("halves"),
            prediction=own("zero_output"), weighting=own("tenfold"), condition_dropout=0.0,
        ),
        sample=dict(sampler=own("to_the_end"), sigma_schedule="ones", steps=3, clip=False),
    )  # fmt: skip
    run = tiny.make("diffusion", **sections)
    objective, batch = run.objective, tiny.batch("diffusion")
    objective.levels = 0
    params = tiny.params(run, "diffusion")
    assert objective.preconditioning.schedule.sigma_max == pytest.approx(3)
    loss, _ = objective.loss("model", params, {}, batch, KEY_B, 0)
    x0 = batch["image"] / 127.5 - 1
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), (8, 8, 1)))(KEY_B)
    error = 10 * ((x0 + 0.5 * np.asarray(noise)) / 2 - x0) ** 2
    wanted = np.average(error.mean((1, 2, 3)), weights=batch["weight"])
    np.testing.assert_allclose(loss.value(), wanted, rtol=1e-4)
    x = objective.sample(params, {}, KEY_B, tiny.request(run.config.sample, 8, jnp.arange(8)))
    start = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (8, 8, 1)))(KEY_B)
    np.testing.assert_allclose(x, start / 8, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_unknown_names_are_named_with_their_field(registry: Registry):
    section, _, field = registry.field.partition(".")
    with pytest.raises(UserError, match=rf"{section}\.{field}"):
        tiny.recipe("diffusion", **{section: {field: "nothing"}})


def test_a_flow_map_needs_a_model_that_has_one():
    run = tiny.make("diffusion", sample=dict(sampler="meanflow"))
    request = tiny.request(run.config.sample, 2, jnp.arange(2))
    with pytest.raises(UserError, match=r"objective\.name=meanflow"):
        run.objective.sample(tiny.params(run, "diffusion"), {}, KEY_B[:2], request)
