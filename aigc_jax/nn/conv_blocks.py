"""Blocks of convolutional image networks: residual, attention, resizing.

Shapes: B batch, H height, W width, C channels, E embedding size.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import Conv, Dense, Dropout, group_norm
from aigc_jax.ops.activation import silu
from aigc_jax.ops.attention import attention
from aigc_jax.ops.convolution import downsample, upsample


def check_norm_groups(channels: Sequence[int], groups: int) -> None:
    """Raises UserError if a level's channels do not divide into so many groups; 0: any will do."""
    for level, width in enumerate(channels):
        if groups and width % groups:
            raise UserError(
                f"model.channels[{level}]={width} must be divisible by model.norm_groups={groups}"
            )


class ResBlock(nn.Module):
    """norm, SiLU, convolution, the embedding, norm, SiLU, convolution, beside a residual path.

    Attributes:
      channels: of the output.
      dropout: rate before the second convolution.
      dtype: of the computation.
      condition: how the embedding acts: "scale_shift" of the second norm's result (Dhariwal &
        Nichol 2021), or "shift" before that norm (Ho et al. 2020).
      residual_scale: of the sum.
      groups: of the norms; 0: by the number of channels.
      eps: of the norms.
      resample: "down" or "up" halves or doubles the sides after the first norm; "": neither.
    """

    channels: int
    dropout: float
    dtype: jnp.dtype
    condition: str = "scale_shift"
    residual_scale: float = 0.5**0.5
    groups: int = 0
    eps: float = 1e-5
    resample: str = ""

    @nn.compact
    def __call__(self, x_BHWC, embedding_BE=None, key_B=None):
        """`embedding_BE` has been through SiLU; none: the block has no condition."""

        def norm(x, name):
            return group_norm(x.shape[-1], self.dtype, name, self.groups, self.eps)(x)

        x_BHWC = with_logical_constraint(x_BHWC, "batch")

        resize = {"down": downsample, "up": upsample, "": lambda x: x}[self.resample]
        skip, x = resize(x_BHWC), resize(silu(norm(x_BHWC, "norm_in")))
        x = Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_in")(x)
        shift = scale = None
        if embedding_BE is not None:
            both = self.condition == "scale_shift"
            condition = Dense(
                self.channels * (1 + both),
                dtype=self.dtype,
                kernel_axes=("embed", "conv_out"),
                name="condition",
            )
            shift = condition(embedding_BE)[:, None, None]
            if both:
                scale, shift = jnp.split(shift, 2, -1)
        if shift is not None and scale is None:
            x += shift
        x = norm(x, "norm_out")
        if scale is not None:
            x = x * (1 + scale) + shift
        x = Dropout(self.dropout, name="dropout")(silu(x), key_B)
        x = Conv(
            self.channels,
            (3, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="conv_out",
        )(x)
        if skip.shape[-1] != self.channels:
            skip = Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(skip)
        return (skip + x) * jnp.asarray(self.residual_scale, x.dtype)


class SelfAttention(nn.Module):
    """x + attention(norm(x)) over all pixels.

    Attributes:
      heads: how many.
      dtype: of the computation.
      groups: of the norm; 0: by the number of channels, −1: no norm.
      eps: of the norm.
    """

    heads: int
    dtype: jnp.dtype
    groups: int = 0
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x_BHWC):
        b, h, w, c = x_BHWC.shape
        x = x_BHWC
        if self.groups >= 0:
            x = group_norm(c, self.dtype, "norm", self.groups, self.eps)(x)
        project = Dense(3 * c, dtype=self.dtype, kernel_axes=("embed", "heads"), name="qkv")
        qkv = project(x.reshape(b, h * w, c))
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * self.heads, c // self.heads), 3, 2)
        y = attention(q, k, v).reshape(b, h * w, c)
        out = Dense(
            c,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            kernel_axes=("heads", "embed"),
            name="out",
        )
        y = out(y)
        return x_BHWC + y.reshape(b, h, w, c)


class Down(nn.Module):
    """A convolution of stride 2: half the sides.

    Attributes:
      dtype: of the computation.
      before: rows and columns of zeros before the image; with none there is one after it.
    """

    dtype: jnp.dtype
    before: int = 1

    @nn.compact
    def __call__(self, x_BHWC):
        pad = (self.before, 1 - self.before)  # as many as an even side has use for
        conv = Conv(x_BHWC.shape[-1], (3, 3), (2, 2), (pad, pad), dtype=self.dtype, name="conv")
        return conv(x_BHWC)


class Up(nn.Module):
    """Twice the sides: each pixel repeated, then a convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC):
        conv = Conv(x_BHWC.shape[-1], (3, 3), dtype=self.dtype, name="conv")
        return conv(upsample(x_BHWC))
