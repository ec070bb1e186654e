"""The autoencoder of latent diffusion (Rombach et al. 2022): diffusers' AutoencoderKL.

Shapes: B batch, H height, W width, C channels; h, w, Z: sides and channels of the latents.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.fields import option
from aigc_jax.nn.conv_blocks import Down, ResBlock, SelfAttention, Up, check_norm_groups
from aigc_jax.nn.layers import Conv, group_norm
from aigc_jax.nn.padding import crop, fill, filled_size
from aigc_jax.ops.activation import silu

MOST = 0.9999  # of a signed output, a fortieth of a grey level below white; logits are finite


@dataclasses.dataclass(frozen=True)
class KLConfig:
    channels: tuple[int, ...] = option((32, 64), low=4, nonempty=True)  # fine to coarse
    blocks: int = option(
        1, low=1
    )  # residual blocks per level of the encoder; the decoder's has 1 more
    latent: int = option(
        4, low=1
    )  # channels of the latents; a side is halved at each level but one
    middle_attention: bool = True  # at the coarsest level
    norm_groups: int = option(0, low=0)  # 0: up to 32 of at least 4 channels
    norm_eps: float = option(1e-6, low=0.0)
    quant_conv: bool = True  # a 1×1 convolution after the encoder …
    post_quant_conv: bool = True  # … and before the decoder
    # The last layer gives images in [−1, 1], as diffusers' does, and what is returned is the logit
    # of (image + 1) / 2; otherwise it gives that logit.
    signed_output: bool = False
    # Latents are (z − shift) · scale for a model over them, so that they are of about unit size.
    scaling_factor: float = option(1.0, low=1e-6)
    shift_factor: float = 0.0

    conditional = False  # it does not know the class

    def __post_init__(self):
        check_norm_groups(self.channels, self.norm_groups)

    @property
    def factor(self) -> int:
        """How many pixels a latent's side covers."""
        return 2 ** (len(self.channels) - 1)

    def filled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of images as the networks see them; UserError if they are too small."""
        return filled_size(size, len(self.channels) - 1, "model.channels")


class _Parts:
    """What encoder and decoder have in common: functions of (x, …, name)."""

    def __init__(self, config: KLConfig, dtype: jnp.dtype):
        self.config, self.dtype = config, dtype

    def block(self, x, channels, name):
        c = self.config
        kind = dict(residual_scale=1.0, groups=c.norm_groups, eps=c.norm_eps, name=name)
        return ResBlock(channels, 0.0, self.dtype, **kind)(x)

    def middle(self, x):
        c, channels = self.config, self.config.channels[-1]
        x = self.block(x, channels, "middle")
        if c.middle_attention:
            kind = dict(groups=c.norm_groups, eps=c.norm_eps, name="middle_attention")
            x = SelfAttention(1, self.dtype, **kind)(x)
        return self.block(x, channels, "middle_out")

    def last(self, x, channels, axes):
        c = self.config
        norm = group_norm(x.shape[-1], self.dtype, "norm_out", c.norm_groups, c.norm_eps)
        conv = Conv(channels, (3, 3), dtype=self.dtype, kernel_axes=axes, name="conv_out")
        return conv(silu(norm(x)))


class Encoder(nn.Module):
    """Images in [0, 1] → mean and log variance of q(z | x), each (B, h, w, Z)."""

    config: KLConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, label_B: jax.Array | None = None):
        c, parts = self.config, _Parts(self.config, self.dtype)
        x = fill(2 * x_BHWC - 1, c.filled(x_BHWC.shape[1:3]))
        kw = dict(dtype=self.dtype, kernel_axes=("inputs", "stem"), name="conv_in")
        x = Conv(c.channels[0], (3, 3), **kw)(x)
        for level, channels in enumerate(c.channels):
            if level:
                x = Down(self.dtype, 0, name=f"down_{level}")(x)
            for i in range(c.blocks):
                x = parts.block(x, channels, f"down_{level}_{i}")
        x = parts.last(parts.middle(x), 2 * c.latent, ("conv_in", "latent"))
        if c.quant_conv:
            kw = dict(dtype=self.dtype, kernel_axes=("latent", "latent"), name="quant_conv")
            x = Conv(2 * c.latent, (1, 1), **kw)(x)
        mean, log_var = jnp.split(x.astype(jnp.float32), 2, -1)
        return mean, jnp.clip(log_var, -30.0, 20.0)  # as diffusers does; far outside of training


class Decoder(nn.Module):
    """(B, h, w, Z) → `outputs` maps per pixel and colour, (B, H, W, C, outputs), float32."""

    config: KLConfig
    shape: tuple[int, int, int]
    outputs: int
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BHWZ: jax.Array, label_B: jax.Array | None = None) -> jax.Array:
        c, parts = self.config, _Parts(self.config, self.dtype)
        x = z_BHWZ
        if c.post_quant_conv:
            kw = dict(dtype=self.dtype, kernel_axes=("latent", "latent"), name="post_quant_conv")
            x = Conv(c.latent, (1, 1), **kw)(x)
        kw = dict(dtype=self.dtype, kernel_axes=("latent", "stem"), name="conv_in")
        x = Conv(c.channels[-1], (3, 3), **kw)(x)
        x = parts.middle(x)
        for level in reversed(range(len(c.channels))):
            for i in range(c.blocks + 1):
                x = parts.block(x, c.channels[level], f"up_{level}_{i}")
            if level:
                x = Up(self.dtype, name=f"up_{level}")(x)
        x = parts.last(x, self.shape[2] * self.outputs, ("conv_in", "outputs"))
        x = x.astype(jnp.float32)
        x = crop(x, self.shape[:2])
        if c.signed_output:
            x = 2 * jnp.arctanh(jnp.clip(x, -MOST, MOST))
        return x.reshape(*x.shape[:3], self.shape[2], self.outputs)
