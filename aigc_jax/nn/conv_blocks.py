"""Blocks of convolutional networks with any number of spatial axes: residual, attention, resize.

Shapes: B batch, … spatial axes, C channels, E embedding size.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import Conv, Dense, Dropout, make_group_norm
from aigc_jax.ops.activation import silu
from aigc_jax.ops.attention import attention
from aigc_jax.ops.convolution import downsample, upsample


def check_norm_groups(channels: Sequence[int], groups: int) -> None:
    """Raises UserError if a level's channels are not divisible by `groups`; 0 disables."""
    for level, width in enumerate(channels):
        if groups and width % groups:
            raise UserError(
                f"model.channels[{level}]={width} must be divisible by model.norm_groups={groups}"
            )


def per_axis(x: jax.Array, size: int) -> tuple[int, ...]:
    """Returns `size` for each spatial axis of `x` (B, …, C), such as a kernel size."""
    return (size,) * (x.ndim - 2)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, embedding, norm, SiLU, convolution.

    Attributes:
      channels: output channels.
      dropout: dropout rate before the second convolution.
      dtype: dtype of the computation.
      condition: use of the embedding: "scale_shift" of the second norm's output (Dhariwal &
        Nichol 2021), or "shift" before that norm (Ho et al. 2020).
      residual_scale: factor of the sum.
      groups: groups of the norms; 0: by the number of channels.
      eps: ε of the norms.
      resample: "down" or "up" halves or doubles the sides after the first norm; "" disables.
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
    def __call__(
        self,
        x: jax.Array,
        embedding_BE: jax.Array | None = None,
        key_B: jax.Array | None = None,
    ) -> jax.Array:
        """(B, …, C) → (B, …', channels).

        Args:
          x: inputs.
          embedding_BE: conditioning vector, passed through SiLU; None without one.
          key_B: dropout keys; None disables dropout.
        """

        def norm(x, name):
            return make_group_norm(x.shape[-1], self.dtype, name, self.groups, self.eps)(x)

        x = with_logical_constraint(x, "batch")
        resize = {"down": downsample, "up": upsample, "": lambda x: x}[self.resample]
        skip, x = resize(x), resize(silu(norm(x, "norm_in")))
        x = Conv(self.channels, per_axis(x, 3), dtype=self.dtype, name="conv_in")(x)
        shift: jax.Array | None = None
        scale: jax.Array | None = None
        if embedding_BE is not None:
            both = self.condition == "scale_shift"
            condition = Dense(
                self.channels * (1 + both),
                dtype=self.dtype,
                kernel_axes=("embed", "conv_out"),
                name="condition",
            )
            condition_BC = condition(embedding_BE)
            shift = condition_BC.reshape(len(x), *[1] * (x.ndim - 2), -1)
            if both:
                scale, shift = jnp.split(shift, 2, -1)
        if shift is not None and scale is None:
            x += shift
        x = norm(x, "norm_out")
        if scale is not None and shift is not None:
            x = x * (1 + scale) + shift
        x = Dropout(self.dropout, name="dropout")(silu(x), key_B)
        x = Conv(
            self.channels,
            per_axis(x, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="conv_out",
        )(x)
        if skip.shape[-1] != self.channels:
            skip = Conv(self.channels, per_axis(x, 1), dtype=self.dtype, name="skip")(skip)
        return (skip + x) * jnp.asarray(self.residual_scale, x.dtype)


class SelfAttention(nn.Module):
    """x + attention(norm(x)) over all positions of all spatial axes.

    Attributes:
      heads: number of heads.
      dtype: dtype of the computation.
      groups: groups of the norm; 0: by the number of channels, −1: no norm.
      eps: ε of the norm.
    """

    heads: int
    dtype: jnp.dtype
    groups: int = 0
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, …, C) → the same shape."""
        (batch, *_, c), y = x.shape, x
        if self.groups >= 0:
            y = make_group_norm(c, self.dtype, "norm", self.groups, self.eps)(y)
        project = Dense(3 * c, dtype=self.dtype, kernel_axes=("embed", "heads"), name="qkv")
        qkv = project(y.reshape(batch, -1, c))
        q, k, v = jnp.split(qkv.reshape(batch, -1, 3 * self.heads, c // self.heads), 3, 2)
        y = attention(q, k, v).reshape(batch, -1, c)
        out = Dense(
            c,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            kernel_axes=("heads", "embed"),
            name="out",
        )
        return x + out(y).reshape(x.shape)


class Down(nn.Module):
    """A convolution of stride 2: halves every spatial axis.

    Attributes:
      dtype: dtype of the computation.
      before: 1 pads one zero before each spatial axis, 0 one zero after it.
    """

    dtype: jnp.dtype
    before: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, …, C) → (B, … / 2, C)."""
        pad = (self.before, 1 - self.before)  # sufficient for even sizes
        pads = (pad,) * (x.ndim - 2)
        conv = Conv(
            x.shape[-1], per_axis(x, 3), per_axis(x, 2), pads, dtype=self.dtype, name="conv"
        )
        return conv(x)


class Up(nn.Module):
    """Doubles every spatial axis: each pixel repeated, then a convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, …, C) → (B, 2 …, C)."""
        return Conv(x.shape[-1], per_axis(x, 3), dtype=self.dtype, name="conv")(upsample(x))
