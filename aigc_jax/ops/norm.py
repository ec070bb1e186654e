"""Layer norm, RMS norm and group norm, all computed in float32.

Shapes: C channels, G groups of them, … any axes; B the batch, which is the first.
"""

import functools

import jax
import jax.numpy as jnp

from aigc_jax.ops import dispatch


def layer_norm(x_C: jax.Array, eps: float) -> jax.Array:
    """Returns (x − mean) / √(variance + eps) over the last axis (Ba et al. 2016), float32.

    The variance is the mean of squared differences, which is accurate for large means.
    """
    return _normalised(x_C, eps, centred=True)


def rms_norm(x_C: jax.Array, eps: float) -> jax.Array:
    """Returns x / √(mean of squares + eps) over the last axis (Zhang & Sennrich 2019), float32."""
    return _normalised(x_C, eps, centred=False)


def _normalised(x_C: jax.Array, eps: float, centred: bool) -> jax.Array:
    plain = dispatch.implementation("norm") == "reference"
    return (_plain if plain else _custom_jvp)(x_C.astype(jnp.float32), eps, centred)


def _plain(x: jax.Array, eps: float, centred: bool) -> jax.Array:
    if centred:
        x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _custom_jvp(x: jax.Array, eps: float, centred: bool) -> jax.Array:
    return _plain(x, eps, centred)


@_custom_jvp.defjvp
def _(eps, centred, primals, tangents):
    """Derivative in terms of the result y: r · (dx − mean(dx) − y · mean(y · dx)), r = 1/√…"""
    (x,), (dx,) = primals, tangents
    if centred:
        x, dx = (z - z.mean(-1, keepdims=True) for z in (x, dx))
    r = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
    y = x * r
    return y, r * (dx - y * (y * dx).mean(-1, keepdims=True))


def group_norm(
    x_BC: jax.Array, scale_C: jax.Array, bias_C: jax.Array, groups: int, eps: float
) -> jax.Array:
    """Normalises over all positions and the channels of a group (Wu & He 2018), float32.

    Sums are taken per channel, then per group, and the norm becomes one factor and one addend per
    channel, so that x is read once for the sums and once for the result, also in the gradient.

    Args:
      x_BC: (B, …, C).
      scale_C, bias_C: learned scale and bias.
      groups: G, which divides C; a group has consecutive channels.
      eps: added to the variance.
    """
    x, channels = x_BC.astype(jnp.float32), x_BC.shape[-1]
    places = tuple(range(1, x.ndim - 1))

    def mean(y_BC: jax.Array) -> jax.Array:  # mean of each group, broadcast to its channels
        sum_BGc = y_BC.sum(places).reshape(-1, groups, channels // groups)
        total_BG1 = sum_BGc.sum(-1, keepdims=True) * (x_BC.shape[0] * channels / y_BC.size)
        mean_BGc = jnp.broadcast_to(total_BG1 * (groups / channels), sum_BGc.shape)
        return mean_BGc.reshape(-1, *[1] * len(places), channels)

    mean_BC = mean(x)
    variance_BC = jnp.maximum(mean(jnp.square(x)) - jnp.square(mean_BC), 0)
    factor_BC = jax.lax.rsqrt(variance_BC + eps) * scale_C
    return x * factor_BC + (bias_C - mean_BC * factor_BC)
