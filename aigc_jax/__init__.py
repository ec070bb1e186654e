"""Four families of generative models, one train step.

import aigc_jax
aigc_jax.train(config, workdir)         # a recipe and a folder
aigc_jax.evaluate(workdir)              # held-out metrics
aigc_jax.sample(workdir, num=64)        # images as an array, or texts
"""

import importlib
from typing import Any

from aigc_jax import start

__version__ = "0.1.0"

start.prepare()

_WHERE = {
    "train": "train",  # packages that can be called: see callable_package
    "evaluate": "evaluate",
    "sample": "run",
    "judge_images": "run",
    "restore": "run",
    "recipe": "build",
    "load_recipe": "recipes",
    "register": "families",
    "Family": "families",
    "prepare": "data.prepare",
    "image_grid": "report.grid",
    "UserError": "errors",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    # On first use: JAX takes a second to import, and `aigc --help` should not.
    if name in _WHERE:
        module = importlib.import_module(f"aigc_jax.{_WHERE[name]}")
        return module if name == _WHERE[name] else getattr(module, name)
    raise AttributeError(f"module 'aigc_jax' has no attribute '{name}'")
