"""A diffusion U-Net: residual blocks with time and class embedding, attention at chosen levels.

Shapes: B batch, H height, W width, C channels, E embedding size, K classes.
After Ho et al. (2020), with the adaptive group norm of Dhariwal & Nichol (2021).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import option
from aigc_jax.errors import UserError
from aigc_jax.models.layers import Dropout, check_size, group_norm
from aigc_jax.ops.attention import attention
from aigc_jax.ops.convolution import downsample, upsample


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    channels: tuple[int, ...] = option(
        (32, 64), low=4, filled=True
    )  # one entry per level, fine to coarse
    blocks: int = option(2, low=1)  # residual blocks per level
    attention_levels: tuple[int, ...] = option((1,), low=0)  # 0 is the finest
    heads: int = option(4, low=1)
    embedding: int = option(128, low=4)
    dropout: float = option(0.0, low=0.0, high=0.99)
    conditional: bool = True  # on the class, if the data has classes
    remat: str = option("none", choices=("none", "full"))  # full: keep each block's input only

    def __post_init__(self):
        for level in self.attention_levels:
            if level >= len(self.channels):
                raise UserError(
                    f"model.attention_levels names level {level}, but model.channels has only"
                    f" levels 0 to {len(self.channels) - 1}"
                )
            if self.channels[level] % self.heads:
                raise UserError(
                    f"model.channels[{level}]={self.channels[level]} must be divisible by"
                    f" model.heads={self.heads}, since that level has attention"
                )


def time_embedding(time_B: jax.Array, size: int) -> jax.Array:
    """Sines and cosines at geometric frequencies (B, size); `time_B` in units of 0…1000."""
    half = size // 2
    frequency = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angle = time_B[:, None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class ResBlock(nn.Module):
    channels: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC, embedding_BE, key_B):
        skip = x_BHWC
        x = jax.nn.silu(group_norm(x_BHWC.shape[-1], self.dtype, name="norm_in")(x_BHWC))
        x = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_in")(x)
        scale_shift = nn.Dense(2 * self.channels, dtype=self.dtype, name="condition")(embedding_BE)
        scale, shift = jnp.split(scale_shift[:, None, None], 2, -1)
        x = group_norm(self.channels, self.dtype, name="norm_out")(x) * (1 + scale) + shift
        x = Dropout(self.dropout, name="dropout")(jax.nn.silu(x), key_B)
        x = nn.Conv(
            self.channels,
            (3, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="conv_out",
        )(x)
        if skip.shape[-1] != self.channels:
            skip = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(skip)
        return (skip + x) * jnp.asarray(0.5**0.5, x.dtype)


class SelfAttention(nn.Module):
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC):
        b, h, w, c = x_BHWC.shape
        x = group_norm(c, self.dtype, name="norm")(x_BHWC).reshape(b, h * w, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * self.heads, c // self.heads), 3, 2)
        y = attention(q, k, v).reshape(b, h * w, c)
        y = nn.Dense(c, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="out")(y)
        return x_BHWC + y.reshape(b, h, w, c)


class UNet(nn.Module):
    """(noisy image, time, label) → an image-shaped float32 output.

    Attributes:
      config: sizes.
      num_classes: K; 0 for an unconditional model.
      dtype: of the computation.
    """

    config: UNetConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BHWC: jax.Array,
        time_B: jax.Array,
        label_B: jax.Array | None = None,
        key_B: jax.Array | None = None,
        span_B: jax.Array | None = None,
        augment_BA: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output, of the shape of `x_BHWC`.

        Args:
          x_BHWC: noisy images.
          time_B: from 0 to 1000.
          label_B: classes; K means "no class".
          key_B: dropout keys; none: no dropout.
          span_B: how much time a step covers, from 0 to 1000 (Geng et al. 2025, MeanFlow).
          augment_BA: what was done to the images (Karras et al. 2022, F.2); zeros: nothing.

        The parameters of `span_B` and `augment_BA` exist if `init` is given them.
        """
        c = self.config
        check_size(x_BHWC.shape[1:3], len(c.channels), "model.channels")

        def embed(time_B, name):
            y = time_embedding(time_B, c.embedding)
            y = nn.Dense(c.embedding, dtype=self.dtype, name=f"{name}_in")(y)
            return nn.Dense(c.embedding, dtype=self.dtype, name=f"{name}_out")(jax.nn.silu(y))

        embedding = embed(time_B, "time")
        if span_B is not None:
            embedding += embed(span_B, "span")
        if augment_BA is not None:
            augment = nn.Dense(c.embedding, use_bias=False, dtype=self.dtype, name="augment")
            embedding += augment(augment_BA)
        if self.num_classes and label_B is not None:
            table = nn.Embed(self.num_classes + 1, c.embedding, name="class_embedding")
            embedding += table(label_B).astype(self.dtype)
        embedding = jax.nn.silu(embedding)

        parts = (ResBlock, SelfAttention)
        res_block, self_attention = map(nn.remat, parts) if c.remat == "full" else parts

        def block(x, level, name):
            x = res_block(c.channels[level], c.dropout, self.dtype, name=name)(x, embedding, key_B)
            if level in c.attention_levels:
                x = self_attention(c.heads, self.dtype, name=f"{name}_attention")(x)
            return x

        x = nn.Conv(c.channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x_BHWC)
        skips = [x]
        levels = range(len(c.channels))
        for level in levels:
            if level:
                x = downsample(x)
                skips.append(x)
            for i in range(c.blocks):
                x = block(x, level, f"down_{level}_{i}")
                skips.append(x)
        x = block(x, levels[-1], "middle")
        for level in reversed(levels):
            for i in range(c.blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], -1), level, f"up_{level}_{i}")
            if level:
                x = upsample(x)
        x = jax.nn.silu(group_norm(x.shape[-1], self.dtype, name="norm_out")(x))
        x = nn.Conv(
            x_BHWC.shape[-1],
            (3, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="conv_out",
        )(x)
        return x.astype(jnp.float32)
