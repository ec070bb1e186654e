"""Finds non-finite activations of Flax modules."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn


def nonfinite_modules(compute: Callable[[], Any]) -> list[str]:
    """Runs `compute` without `jit`; returns modules with non-finite outputs, in call order.

    Args:
      compute: calls Flax modules.
    """
    found: list[str] = []

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if any(not is_finite(x) for x in jax.tree.leaves(out)):
            path = "/".join(context.module.path) or type(context.module).__name__
            method = "" if context.method_name == "__call__" else f".{context.method_name}"
            found.append(path + method)
        return out

    with jax.disable_jit(), nn.intercept_methods(intercept):
        compute()
    return list(dict.fromkeys(found))


def is_finite(x: Any) -> bool:
    """Returns whether all numbers of an array are finite; True for tracers and non-arrays."""
    if not isinstance(x, (jax.Array, np.ndarray)) or isinstance(x, jax.core.Tracer):
        return True
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.inexact):
        return True
    return bool(np.all(np.isfinite(np.asarray(x, np.float32))))
