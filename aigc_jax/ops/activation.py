"""Activation functions by name, with explicit derivatives.

The derivatives save only the input for the backward pass; autodiff would save intermediate results.
"""

from collections.abc import Callable
from math import pi, sqrt

import jax
import jax.numpy as jnp

from aigc_jax.ops import dispatch

Function = Callable[[jax.Array], jax.Array]


def with_derivative(plain: Function, slope: Function) -> Function:
    """Returns `plain` with the derivative `slope`, computed in float32."""

    @jax.custom_jvp
    def custom(x: jax.Array) -> jax.Array:
        return plain(x)

    @custom.defjvp
    def _(primals, tangents):
        (x,), (dx,) = primals, tangents
        return plain(x), slope(x.astype(jnp.float32)).astype(x.dtype) * dx

    def chosen(x: jax.Array) -> jax.Array:
        return (custom if dispatch.implementation("activation") == "custom_jvp" else plain)(x)

    chosen.__doc__ = plain.__doc__
    return chosen


def _gelu(x: jax.Array) -> jax.Array:
    """x · Φ(x), with the tanh approximation of the normal distribution function Φ."""
    return jax.nn.gelu(x)


def _gelu_slope(x: jax.Array) -> jax.Array:
    a, b = sqrt(2 / pi), 0.044715
    t = jnp.tanh(a * (x + b * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * a * (1 + 3 * b * x**2)


def _gelu_exact(x: jax.Array) -> jax.Array:
    """x · Φ(x), with the normal distribution function Φ (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_exact_slope(x: jax.Array) -> jax.Array:
    density = jnp.exp(-0.5 * x**2) / sqrt(2 * pi)
    return 0.5 * (1 + jax.lax.erf(x / sqrt(2))) + x * density


def _silu(x: jax.Array) -> jax.Array:
    """x · sigmoid(x)."""
    return jax.nn.silu(x)


def _silu_slope(x: jax.Array) -> jax.Array:
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s))


gelu = with_derivative(_gelu, _gelu_slope)
gelu_exact = with_derivative(_gelu_exact, _gelu_exact_slope)
silu = with_derivative(_silu, _silu_slope)

ACTIVATIONS: dict[str, Function] = {
    "gelu": gelu,
    "gelu_exact": gelu_exact,
    "silu": silu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021
}
