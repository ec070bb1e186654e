"""Inception-v3 as the Fréchet inception distance knows it.

Szegedy et al. 2016, in the form of TensorFlow's graph of 2015-12-05, on which all published FIDs
rest. It differs from the paper and from torchvision's: average pools leave the padding out of their
means, the last block's pool takes the maximum, and inputs are (pixel − 128) / 128. Submodules are
named as in the PyTorch ports of the weights; batch norm is folded into the convolutions.
Shapes: B batch, H height, W width, C channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.nn.layers import Conv

SIZE = 299  # pixels a side that it looks at
FEATURES = 2048  # of its last pool, "pool3"
EPSILON = 1e-3  # of the batch norms that were folded


class Convolution(nn.Module):
    """A convolution with a bias, and the rectifier."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        strides = (self.stride, self.stride)
        return nn.relu(Conv(self.channels, self.kernel, strides, self.padding, name="conv")(x_BHWC))


Branch = tuple[tuple[str, int, tuple[int, int]], ...]  # (name, channels, kernel) of convolutions


def _through(x: jax.Array, branch: Branch, last: tuple[int, str] = (1, "SAME")) -> jax.Array:
    """A chain of convolutions; `last` is the stride and padding of its last one."""
    for i, (name, channels, kernel) in enumerate(branch):
        stride, padding = last if i == len(branch) - 1 else (1, "SAME")
        x = Convolution(channels, kernel, stride, padding, name=name)(x)
    return x


_mean3 = functools.partial(
    nn.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False
)
_max3 = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME")
_halve = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
HALVING = (2, "VALID")


class BlockA(nn.Module):
    """35 × 35: 1×1, 5×5 and two 3×3 convolutions beside a pool."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        branches = (
            (("branch1x1", 64, (1, 1)),),
            (("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            (
                ("branch3x3dbl_1", 64, (1, 1)),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ),
        )
        pooled = _through(_mean3(x), (("branch_pool", self.pooled, (1, 1)),))
        return jnp.concatenate([*(_through(x, b) for b in branches), pooled], -1)


class BlockB(nn.Module):
    """35 × 35 → 17 × 17."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = (
            ("branch3x3dbl_1", 64, (1, 1)),
            ("branch3x3dbl_2", 96, (3, 3)),
            ("branch3x3dbl_3", 96, (3, 3)),
        )
        single = _through(x, (("branch3x3", 384, (3, 3)),), HALVING)
        return jnp.concatenate([single, _through(x, double, HALVING), _halve(x)], -1)


class BlockC(nn.Module):
    """17 × 17: 7×7 convolutions cut into rows and columns."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w, row, column = self.width, (1, 7), (7, 1)
        branches = (
            (("branch1x1", 192, (1, 1)),),
            (("branch7x7_1", w, (1, 1)), ("branch7x7_2", w, row), ("branch7x7_3", 192, column)),
            (
                ("branch7x7dbl_1", w, (1, 1)),
                ("branch7x7dbl_2", w, column),
                ("branch7x7dbl_3", w, row),
                ("branch7x7dbl_4", w, column),
                ("branch7x7dbl_5", 192, row),
            ),
        )
        pooled = _through(_mean3(x), (("branch_pool", 192, (1, 1)),))
        return jnp.concatenate([*(_through(x, b) for b in branches), pooled], -1)


class BlockD(nn.Module):
    """17 × 17 → 8 × 8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        single = (("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3)))
        triple = (
            ("branch7x7x3_1", 192, (1, 1)),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, (3, 3)),
        )
        parts = [_through(x, single, HALVING), _through(x, triple, HALVING), _halve(x)]
        return jnp.concatenate(parts, -1)


class BlockE(nn.Module):
    """8 × 8: 3×3 convolutions as a row beside a column; the pool takes the mean or the largest."""

    largest: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def forked(x: jax.Array, name: str) -> list[jax.Array]:
            return [
                _through(x, ((f"{name}a", 384, (1, 3)),)),
                _through(x, ((f"{name}b", 384, (3, 1)),)),
            ]

        single = _through(x, (("branch3x3_1", 384, (1, 1)),))
        double = _through(x, (("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))))
        pooled = _max3(x) if self.largest else _mean3(x)
        parts = [
            _through(x, (("branch1x1", 320, (1, 1)),)),
            *forked(single, "branch3x3_2"),
            *forked(double, "branch3x3dbl_3"),
            _through(pooled, (("branch_pool", 192, (1, 1)),)),
        ]
        return jnp.concatenate(parts, -1)


class Inception(nn.Module):
    """Images (B, 299, 299, 3), as (pixel − 128) / 128 → features (B, 2048)."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x = Convolution(32, (3, 3), *HALVING, name="Conv2d_1a_3x3")(x_BHWC)
        x = Convolution(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _halve(Convolution(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Convolution(80, name="Conv2d_3b_1x1")(x)
        x = _halve(Convolution(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = BlockA(pooled, name=f"Mixed_{name}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = BlockC(width, name=f"Mixed_{name}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(False, name="Mixed_7b")(x)
        x = BlockE(True, name="Mixed_7c")(x)
        return x.mean((1, 2))
