"""Layers that several models share."""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.errors import UserError
from aigc_jax.ops.convolution import depth_to_space


class Dropout(nn.Module):
    """Dropout with one key per example, so that it does not depend on how a batch is cut."""

    rate: float

    @nn.compact
    def __call__(self, x_B: jax.Array, key_B: jax.Array | None) -> jax.Array:
        """Without keys (evaluation, sampling) it is the identity."""
        if key_B is None or self.rate == 0:
            return x_B
        site = zlib.crc32("/".join(map(str, self.path)).encode()) & 0x7FFFFFFF

        def keep(key):
            return jax.random.bernoulli(jax.random.fold_in(key, site), 1 - self.rate, x_B.shape[1:])

        return jnp.where(jax.vmap(keep)(key_B), x_B / (1 - self.rate), 0)


class SubPixelConv(nn.Module):
    """Doubles height and width: a transposed convolution of stride 2 in its sub-pixel form."""

    features: int
    kernel: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        conv = nn.Conv(4 * self.features, (self.kernel, self.kernel), dtype=self.dtype, name="conv")
        return depth_to_space(conv(x_BHWC))


def group_norm(channels: int, dtype: jnp.dtype, name: str | None = None) -> nn.GroupNorm:
    """Group norm with up to 32 groups of at least 4 channels, which divide the channels."""
    groups = next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype, name=name)


def label_one_hot(label_B: jax.Array | None, batch: int, num_classes: int) -> jax.Array:
    """(B, num_classes) float32; all zero for a label outside the range, which means "none"."""
    if label_B is None:
        return jnp.zeros((batch, num_classes))
    return jax.nn.one_hot(label_B, num_classes)


def check_size(size: tuple[int, int], levels: int, what: str) -> None:
    """Raises UserError if an image side cannot be halved `levels − 1` times."""
    factor = 2 ** (levels - 1)
    if any(side % factor for side in size):
        raise UserError(
            f"images of {size[0]}×{size[1]} cannot be halved {levels - 1} times: give {what} fewer"
            " entries, or prepare the images with --image_size"
        )
