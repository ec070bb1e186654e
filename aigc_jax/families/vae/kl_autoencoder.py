"""The autoencoder of latent diffusion (Rombach et al. 2022): diffusers' AutoencoderKL.

Shapes: B batch, … one or more spatial axes, such as H, W; …' those of the latents; C channels, Z
latent channels.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Conditions
from aigc_jax.core.fields import option
from aigc_jax.families.vae.latent_groups import HalvedLevels
from aigc_jax.nn.conv_blocks import (
    Down,
    ResBlock,
    SelfAttention,
    Up,
    check_norm_groups,
    per_axis,
)
from aigc_jax.nn.layers import Conv, make_group_norm
from aigc_jax.nn.padding import crop, fill
from aigc_jax.ops.activation import silu

MAX_SIGNED = 0.9999  # of a signed output, a fortieth of a grey level below white; logits are finite


@dataclasses.dataclass(frozen=True)
class KLConfig(HalvedLevels):
    """The section `model` of diffusers' AutoencoderKL."""

    channels: tuple[int, ...] = option((32, 64), low=4, nonempty=True)  # fine to coarse
    blocks: int = option(1, low=1)  # residual blocks per level of the encoder; the decoder: 1 more
    latent: int = option(4, low=1)  # channels of the latents; halved at each level but one
    middle_attention: bool = True  # at the coarsest level
    norm_groups: int = option(0, low=0)  # 0: up to 32 of at least 4 channels
    norm_eps: float = option(1e-6, low=0.0)
    quant_conv: bool = True  # a 1×1 convolution after the encoder …
    post_quant_conv: bool = True  # … and before the decoder
    # The last layer gives values x in [−1, 1], as that of diffusers, and the decoder returns logits
    # of (x + 1) / 2; otherwise the last layer gives these logits.
    signed_output: bool = False
    # Latents are (z − shift) · scale for a model over them, so that they are of about unit size.
    scaling_factor: float = option(1.0, low=1e-6)
    shift_factor: float = 0.0

    conditional = False  # it is not told the class

    def __post_init__(self):
        check_norm_groups(self.channels, self.norm_groups)


class _Layers:
    """Layers that encoder and decoder have in common, called within a module."""

    def __init__(self, config: KLConfig, dtype: jnp.dtype):
        self.config, self.dtype = config, dtype

    def block(self, x: jax.Array, channels: int, name: str) -> jax.Array:
        """A residual block."""
        c = self.config
        return ResBlock(
            channels,
            0.0,
            self.dtype,
            residual_scale=1.0,
            groups=c.norm_groups,
            eps=c.norm_eps,
            name=name,
        )(x)

    def middle(self, x: jax.Array) -> jax.Array:
        """The blocks at the coarsest level."""
        c, channels = self.config, self.config.channels[-1]
        x = self.block(x, channels, "middle")
        if c.middle_attention:
            x = SelfAttention(
                1, self.dtype, groups=c.norm_groups, eps=c.norm_eps, name="middle_attention"
            )(x)
        return self.block(x, channels, "middle_out")

    def last(self, x: jax.Array, channels: int, axes: tuple[str, str]) -> jax.Array:
        """Norm, SiLU, and the convolution to the output's channels."""
        c = self.config
        norm = make_group_norm(x.shape[-1], self.dtype, "norm_out", c.norm_groups, c.norm_eps)
        conv = Conv(channels, per_axis(x, 3), dtype=self.dtype, kernel_axes=axes, name="conv_out")
        return conv(silu(norm(x)))


class Encoder(nn.Module):
    """Examples (B, …, C) in [0, 1] → mean and log variance of q(z | x), each (B, …', Z)."""

    config: KLConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, conditions: Conditions | None = None
    ) -> tuple[jax.Array, jax.Array]:
        c, layers = self.config, _Layers(self.config, self.dtype)
        x = fill(2 * x - 1, c.filled(x.shape[1:-1]))
        x = Conv(
            c.channels[0],
            per_axis(x, 3),
            dtype=self.dtype,
            kernel_axes=("inputs", "stem"),
            name="conv_in",
        )(x)
        for level, channels in enumerate(c.channels):
            if level:
                x = Down(self.dtype, 0, name=f"down_{level}")(x)
            for i in range(c.blocks):
                x = layers.block(x, channels, f"down_{level}_{i}")
        x = layers.last(layers.middle(x), 2 * c.latent, ("conv_in", "latent"))
        if c.quant_conv:
            x = Conv(
                2 * c.latent,
                per_axis(x, 1),
                dtype=self.dtype,
                kernel_axes=("latent", "latent"),
                name="quant_conv",
            )(x)
        mean, log_var = jnp.split(x.astype(jnp.float32), 2, -1)
        return mean, jnp.clip(log_var, -30.0, 20.0)  # as diffusers does; far outside of training


class Decoder(nn.Module):
    """(B, …', Z) → one output per value of an example, (B, *shape) float32."""

    config: KLConfig
    shape: tuple[int, ...]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, conditions: Conditions | None = None) -> jax.Array:
        c, layers = self.config, _Layers(self.config, self.dtype)
        *sides, outputs = self.shape
        x = z
        if c.post_quant_conv:
            x = Conv(
                c.latent,
                per_axis(x, 1),
                dtype=self.dtype,
                kernel_axes=("latent", "latent"),
                name="post_quant_conv",
            )(x)
        x = Conv(
            c.channels[-1],
            per_axis(x, 3),
            dtype=self.dtype,
            kernel_axes=("latent", "stem"),
            name="conv_in",
        )(x)
        x = layers.middle(x)
        for level in reversed(range(len(c.channels))):
            for i in range(c.blocks + 1):
                x = layers.block(x, c.channels[level], f"up_{level}_{i}")
            if level:
                x = Up(self.dtype, name=f"up_{level}")(x)
        x = layers.last(x, outputs, ("conv_in", "outputs"))
        x = crop(x.astype(jnp.float32), sides)
        if c.signed_output:
            x = 2 * jnp.arctanh(jnp.clip(x, -MAX_SIGNED, MAX_SIGNED))
        return x
