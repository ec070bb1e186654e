"""The recipes of diffusion: their sizes, and two steps of each made small."""

import glob
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.paths import CONFIGS

from aigc_jax.experiment import build
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.modalities.image.spec import ImageSpec

FOLDER = CONFIGS / "diffusion"
NAMES = tuple(str(i) for i in range(10))
FASHION, CIFAR = ImageSpec((28, 28, 1), NAMES), ImageSpec((32, 32, 3), NAMES)
CLASSES = tuple(str(i) for i in range(1000))
IMAGENET = ImageSpec((64, 64, 3), CLASSES)
LATENTS = ImageSpec((32, 32, 4), CLASSES, continuous=True)
SMALL_DIT = {"model.width": 32, "model.depth": 2, "model.heads": 2}
SMALL_UNET = {"model.channels": (8, 8, 8), "model.blocks": 1, "model.embedding": 16}
SMALL_ADM = {**SMALL_UNET, "model.channels": (8, 8, 8, 8), "model.head_size": 4}

# Data, parameters, and what to change for a smoke run. Recipes behind an autoencoder need one.
RECIPES = {
    "fashion.py": (FASHION, 958_788, {}),
    "fashion.py:gpu": (FASHION, 35_206_785, SMALL_UNET),
    "meanflow.py": (FASHION, 1_027_297, {}),
    "cifar10.py": (CIFAR, 58_292_483, {**SMALL_UNET, "model.frequencies": 8}),
    "imagenet64.py": (IMAGENET, 284_097_411, SMALL_ADM),
    "imagenet64.py:dit": (IMAGENET, 457_892_912, SMALL_DIT),
    "dit_xl2.py": (LATENTS, 674_834_720, SMALL_DIT),
}  # fmt: skip
OTHERS = {"quickstart.py", "latent.py"}


def parts(name, **changes):
    """The run of a recipe, for data of the right kind."""
    recipe = load_recipe(str(FOLDER / name))
    recipe.update_from_flattened_dict({"mesh": "data=1", **changes})
    return build.build(build.parse_config(recipe), RECIPES[name][0])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_size_that_it_says(name):
    shapes = parts(name).state_shapes()
    assert sum(x.size for x in jax.tree.leaves(shapes.params)) == RECIPES[name][1]


def test_every_recipe_of_diffusion_is_looked_at():
    files = {os.path.basename(f) for f in glob.glob(os.path.join(FOLDER, "*.py"))}
    assert files == {name.partition(":")[0] for name in RECIPES} | OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_a_recipe_made_small(name):
    spec, _, small = RECIPES[name]
    run = parts(name, **{"data.batch_size": 4, "eval.batch_size": 4, **small})
    state = run.step.put_state(jax.jit(run.init)(jnp.int32(0)))
    batch, rng = spec.example_batch(4), np.random.default_rng(0)
    batch["image"] = rng.integers(0, 256, batch["image"].shape).astype(np.uint8)
    for _ in range(2):
        state, metrics = run.step(state, run.step.put_batch(batch))
        assert np.isfinite(float(metrics["loss"].value()))
        assert float(metrics["skipped"].value()) == 0
    options = build.sample_options(run.config, {"steps": 2})
    keys = jax.random.split(jax.random.key(0), 2)
    request = tiny.request(options, 2, jnp.array([0, 1]))
    assert run.objective.sample(state.sampling_params, {}, keys, request).shape[1:] == spec.shape
