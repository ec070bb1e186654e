"""Parts of a package outside the library, used from a config by name or import path.

The package registers a family, a network, a sampler, a noise schedule, a data source, a metric, an
optimizer and a learning-rate schedule. A workdir remembers what it needs, so that another process
evaluates, samples and resumes the run.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.paths import ROOT

import aigc_jax
from aigc_jax.core.errors import UserError

PACKAGE = '''
import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

import aigc_jax
from aigc_jax.core.config import OPTIMIZERS, SCHEDULES, Sample
from aigc_jax.core.metrics import Mean
from aigc_jax.core.modality import LEVELS
from aigc_jax.core.objective import Objective
from aigc_jax.families.diffusion.family import DENOISERS
from aigc_jax.families.diffusion.noise_schedules import NOISE_SCHEDULES, Karras
from aigc_jax.families.diffusion.sampler_steps import SAMPLERS, Sampler
from aigc_jax.modalities.metric import METRICS, Metric
from aigc_jax.modalities.sources import DATA_SOURCES
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.random import normal


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    width: int = 8
    conditional: bool = False


class Tiny(nn.Module):
    """A denoiser of two dense layers over channels."""

    config: TinyConfig
    num_classes: int
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, time_B, conditions=None, key_B=None):
        time = jnp.broadcast_to(time_B.reshape(-1, *[1] * (x.ndim - 1)) / 1000, x.shape)
        y = nn.Dense(self.config.width)(jnp.concatenate([x, time], -1))
        return nn.Dense(x.shape[-1])(nn.silu(y))


TINY = DENOISERS.register("tiny", aigc_jax.Model(TinyConfig, Tiny))


@SAMPLERS.decorator("straight")
class _Straight(Sampler):
    """Euler's method, written again."""

    def step(self, denoiser, x, step, memory):
        slope = (x - denoiser(x, step.sigma)) / step.sigma
        return x + (step.sigma_next - step.sigma) * slope, memory


SAMPLERS.register("straight", _Straight())
NOISE_SCHEDULES.register("narrow", lambda config: Karras(0.01, 10.0))
OPTIMIZERS.register("plain", lambda args: optax.sgd(args.learning_rate))


def halving(config, steps):
    return optax.exponential_decay(config.lr, max(steps // 2, 1), 0.5)


@DATA_SOURCES.decorator("checkerboards")
def checkerboards(argument, config):
    rng = np.random.default_rng(0)
    phase = rng.integers(0, 2, 60)
    board = (np.indices((8, 8)).sum(0)[None] + phase[:, None, None]) % 2
    return {"image": (255 * board[..., None]).astype(np.uint8), "label": phase}


@METRICS.decorator("mean_grey")
class MeanGrey(Metric):
    def __call__(self, context, model):
        return {"mean_grey": float(model.samples(4).mean())}


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


class Pixels(Objective):
    """Independent Gaussian pixels."""

    turns = ("model",)

    def __init__(self, shape):
        self.shape = shape

    def init(self, rng, batch):
        return {"model": {"mean": jnp.zeros(self.shape)}}, {}

    def loss(self, player, params, mutables, batch, key_B, step):
        return self.evaluate(params, mutables, batch, key_B)["loss"], ({}, mutables)

    def evaluate(self, params, mutables, batch, key_B):
        error = to_signed(batch["image"]) - params["model"]["mean"]
        return {"loss": Mean.of((error**2).mean((1, 2, 3)), batch["weight"])}

    def sample(self, params, mutables, key_N, request):
        return to_bytes(params["model"]["mean"] + 0.1 * normal(key_N, self.shape))


PIXELS = aigc_jax.Family(
    Nothing, Sample, {"none": Nothing}, lambda parts: Pixels(parts.spec.shape), (LEVELS,)
)
aigc_jax.register("own_pixels", PIXELS)
'''

SMALL = dict(
    train=dict(steps=4, log_every=2),
    eval=dict(
        batch_size=8, batches=1, num_samples=4, metrics=("mean_grey",), image=dict(fidelity=False)
    ),
    checkpoint=dict(every=2),
    mesh="data=1",
)
DIFFUSION = dict(
    plugins=("own_parts",),
    data=dict(source="checkerboards", batch_size=8),
    model=dict(name="tiny", width=4),
    objective=dict(name="diffusion", schedule="narrow"),
    optim=dict(name="plain", lr=1e-2, schedule="own_parts:halving"),
    sample=dict(num=3, steps=2, sampler="straight"),
    **SMALL,
)
BY_PATH = DIFFUSION | dict(
    plugins=(),
    data=dict(source="own_parts:checkerboards", batch_size=8),
    model=dict(name="own_parts:TINY", width=4),
)
PROCESS = """
import json, sys
import aigc_jax
workdir = sys.argv[1]
metrics = aigc_jax.evaluate(workdir)
with open(f"{workdir}/config.json") as f:
    recipe = json.load(f)
recipe["train"]["steps"] = 6
aigc_jax.train(recipe, workdir, progress=False)
images = aigc_jax.sample(workdir, num=2)
print(json.dumps([metrics["loss"], metrics["mean_grey"], list(images.shape)]))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package in a folder of sys.path; its registrations are undone afterwards."""
    from aigc_jax.core import registry

    kinds = registry_snapshot(registry)
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "own_parts.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("own_parts", None)
    for items, before in kinds:
        items.clear()
        items.update(before)


def registry_snapshot(registry):
    import gc

    found = [r for r in gc.get_objects() if isinstance(r, registry.Registry)]
    return [(r._items, dict(r._items)) for r in found]


@pytest.mark.parametrize("config", [DIFFUSION, BY_PATH], ids=["by name", "by import path"])
def test_a_run_of_parts_outside_the_library(package, tmp_path, config):
    workdir = str(tmp_path / "run")
    aigc_jax.train(aigc_jax.recipe(**config), workdir, progress=False)
    images = aigc_jax.sample(workdir, num=3)
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    metrics = aigc_jax.evaluate(workdir)
    assert np.isfinite(metrics["loss"]) and 0 <= metrics["mean_grey"] <= 255


def test_another_process_finds_the_package_by_the_workdir(package, tmp_path):
    workdir = str(tmp_path / "run")
    aigc_jax.train(aigc_jax.recipe(**DIFFUSION), workdir, progress=False)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    command = [sys.executable, "-c", PROCESS, workdir]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loss, grey, shape = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(loss) and 0 <= grey <= 255 and shape == [2, 8, 8, 1]


def test_a_registered_family_is_remembered_by_its_module(package, tmp_path):
    import own_parts  # noqa: F401

    recipe = aigc_jax.recipe(
        data=dict(source="digits", batch_size=8),
        model=dict(name="none"),
        objective=dict(name="own_pixels"),
        **SMALL,
    )
    assert recipe.plugins == ("own_parts",)
    aigc_jax.train(recipe, str(tmp_path / "run"), progress=False)
    with open(tmp_path / "run" / "config.json") as f:
        assert json.load(f)["plugins"] == ["own_parts"]


def test_missing_package_is_named(package, tmp_path):
    with pytest.raises(UserError, match=r"plugins.*no_such_package"):
        aigc_jax.recipe(**{**DIFFUSION, "plugins": ("no_such_package",)})
    with pytest.raises(UserError, match=r"model\.name=no_such_package:NET"):
        aigc_jax.recipe(**{**BY_PATH, "model": dict(name="no_such_package:NET")})
