"""Packages that are also verbs: `aigc_jax.train(config, workdir)` beside `aigc_jax.train.step`.

The library and the function that uses it have the same name, and a package's attribute can hold
only one of them; so the package itself answers the call.
"""

import importlib
import sys
import types
from typing import Any


def make_callable(package: str, function: str) -> None:
    """Calling the imported `package` calls `aigc_jax.run.<function>`."""

    class CallablePackage(types.ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module("aigc_jax.run"), function)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
