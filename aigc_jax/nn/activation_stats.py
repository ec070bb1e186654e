"""Finds modules with non-finite outputs."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn


def nonfinite_modules(compute: Callable[[], Any]) -> list[str]:
    """Runs `compute` eagerly; returns the modules with non-finite outputs, in call order.

    Args:
      compute: calls Flax modules outside `jit`.
    """
    found: list[str] = []

    def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if any(not is_finite(x) for x in jax.tree.leaves(out)):
            path = "/".join(context.module.path) or type(context.module).__name__
            method = "" if context.method_name == "__call__" else f".{context.method_name}"
            found.append(path + method)
        return out

    with jax.disable_jit(), nn.intercept_methods(look):
        compute()
    return list(dict.fromkeys(found))


def is_finite(x: Any) -> bool:
    """Returns whether an array is finite; True for abstract arrays and other values."""
    if isinstance(x, jax.core.Tracer) or not hasattr(x, "dtype"):
        return True
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.inexact):
        return True
    return bool(np.all(np.isfinite(np.asarray(x, np.float32))))
