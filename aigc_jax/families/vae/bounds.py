"""Terms of the evidence lower bound and of importance-weighted bounds.

Shapes: B batch, L latents of a group, G groups.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.ops.per_example import sum_per_example

T = TypeVar("T")


def kl_per_latent(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mean, var) ‖ N(0, 1)) of each latent in nats, (B, …) → (B, L)."""
    nats = (mean**2 + jnp.exp(log_var) - log_var - 1) / 2
    return nats.reshape(len(nats), -1)


def log_ratio(noise: jax.Array, mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """log q(u | x) − log N(u; 0, 1) at u = mean + std · noise, (B,)."""
    u = mean + jnp.exp(log_var / 2) * noise
    return sum_per_example((u**2 - noise**2 - log_var) / 2)


def kl_metrics(kl_GB: list[jax.Array], weight_B: jax.Array) -> Metrics:
    """`kl`, the sum over all groups, and `kl_0`, `kl_1`, … of each if there are several."""
    means = [Mean.of(kl_B, weight_B) for kl_B in kl_GB]
    return {"kl": Mean.of(jnp.asarray(sum(kl_GB)), weight_B), **numbered("kl", means)}


def numbered(name: str, values: list[T]) -> dict[str, T]:
    """`name_0`, `name_1`, …; empty if there is only one value."""
    return {f"{name}_{i}": value for i, value in enumerate(values)} if len(values) > 1 else {}
