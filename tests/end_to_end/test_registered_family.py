"""A fifth family, added without touching the library: independent Gaussian pixels."""

import dataclasses

import jax.numpy as jnp
import numpy as np

import aigc_jax
from aigc_jax.core.config import Data, Sample
from aigc_jax.core.metrics import Mean
from aigc_jax.core.modality import LEVELS
from aigc_jax.core.objective import Objective
from aigc_jax.families import registry
from aigc_jax.modalities import sources
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.random import normal


@dataclasses.dataclass(frozen=True)
class PixelsConfig:
    start: float = 1.0  # the deviation to begin with


@dataclasses.dataclass(frozen=True)
class NoModel:
    pass


class Pixels(Objective):
    turns = ("model",)

    def __init__(self, config, shape):
        self.config, self.shape = config, shape

    def init(self, rng, batch):
        log_std = jnp.full(self.shape, jnp.log(self.config.start), jnp.float32)
        return {"model": {"mean": jnp.zeros(self.shape), "log_std": log_std}}, {}

    def loss(self, player, params, mutables, batch, key_B, step):
        return self.evaluate(params, mutables, batch, key_B)["loss"], ({}, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        p = params["model"]
        error = (to_signed(batch["image"]) - p["mean"]) * jnp.exp(-p["log_std"])
        nats_B = (error**2 / 2 + p["log_std"]).sum((1, 2, 3))
        return {"loss": Mean.of(nats_B, batch["weight"])}

    def sample(self, params, mutables, key_N, request):
        p = params["model"]
        return to_bytes(p["mean"] + jnp.exp(p["log_std"]) * normal(key_N, self.shape))


def test_a_fifth_family_trains_evaluates_and_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.FAMILIES, "_items", dict(registry.FAMILIES))
    aigc_jax.register(
        "pixels",
        aigc_jax.Family(
            objective=PixelsConfig,
            sample=Sample,
            models={"none": NoModel},
            make=lambda parts: Pixels(parts.objective, parts.spec.shape),
            tasks=(LEVELS,),
        ),
    )
    recipe = aigc_jax.recipe(
        data=dict(source="digits", batch_size=64),
        model=dict(name="none"),
        objective=dict(name="pixels"),
        optim=dict(lr=0.05, schedule="cosine"),
        train=dict(steps=300, accumulate=2),
        eval=dict(image=dict(fidelity=False)),
        mesh="data=4",
    )
    aigc_jax.train(recipe, str(tmp_path), progress=False)
    images = aigc_jax.sample(str(tmp_path), num=500)
    digits = sources.load_source(Data(source="digits")).train
    batch = [digits[i]["image"] for i in range(1000)]
    # Its maximum likelihood is known: each pixel's mean.
    np.testing.assert_allclose(images.mean(0), np.mean(batch, 0), atol=25)
    assert np.isfinite(aigc_jax.evaluate(str(tmp_path))["loss"])
