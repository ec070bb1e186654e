"""Generative models in JAX with one train step.

import aigc_jax
aigc_jax.train(config, workdir)         # trains a recipe in a folder
aigc_jax.evaluate(workdir)              # returns held-out metrics
aigc_jax.sample(workdir, num=64)        # returns images as an array, or texts
aigc_jax.load(workdir)                  # returns the objective, its parameters and a pure `apply`

Importing has no side effects; `configure()` sets flags of XLA and the allocator, as `aigc` does.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    # Runs in workdirs.
    "configure": "core.environment",
    "train": "runs.train",
    "evaluate": "runs.evaluate",
    "evaluate_images": "runs.evaluate_images",
    "sample": "runs.sample",
    "load": "experiment.trained",
    "restore": "experiment.restore",
    "Callback": "training.callbacks",
    "Periodic": "training.callbacks",
    "UserError": "core.errors",
    "image_grid": "modalities.image.grid",
    "prepare": "modalities.prepare",
    # Recipes.
    "load_recipe": "experiment.recipes",
    "parse_config": "experiment.build",
    "recipe": "experiment.build",
    # The parts of a run, for a loop of one's own.
    "build": "experiment.build",
    "compile_step": "training.compile",
    "init_state": "training.init",
    "load_dataset": "experiment.dataset",
    "make_mesh": "distributed.mesh",
    "make_objective": "experiment.build",
    "make_step": "training.step",
    # What models of one's own are made of.
    "Family": "families.registry",
    "Mean": "core.metrics",
    "Model": "families.registry",
    "Objective": "core.objective",
    "register": "families.registry",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    # Imported on first use: JAX takes a second to import, and `aigc --help` should not.
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"aigc_jax.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'aigc_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
