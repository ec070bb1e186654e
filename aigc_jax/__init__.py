"""Generative models in JAX with one train step.

import aigc_jax
aigc_jax.train(config, workdir)         # trains a recipe in a folder
aigc_jax.evaluate(workdir)              # returns held-out metrics
aigc_jax.sample(workdir, num=64)        # returns images as an array, or texts

Importing has no side effects; `configure()` sets flags of XLA and the allocator, as `aigc` does.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "configure": "core.environment",
    "train": "runs.api",
    "evaluate": "runs.api",
    "sample": "runs.api",
    "judge_images": "runs.api",
    "restore": "runs.api",
    "recipe": "experiment.build",
    "load_recipe": "experiment.recipes",
    "register": "families.registry",
    "Family": "families.registry",
    "prepare": "modalities.prepare",
    "image_grid": "modalities.image.grid",
    "UserError": "core.errors",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    # Imported on first use: JAX takes a second to import, and `aigc --help` should not.
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"aigc_jax.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'aigc_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
