"""A diffusion U-Net: residual blocks with time and class embedding, attention at chosen levels.

By config it is a small network with the adaptive group norm of Dhariwal & Nichol (2021), which the
defaults are, or that of Ho et al. (2020), DDPM, as diffusers' UNet2DModel has it.
Shapes: B batch, H height, W width, C channels, E embedding size, K classes, A augmentation labels.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.nn.conv_blocks import Down, ResBlock, SelfAttention, Up, check_norm_groups
from aigc_jax.nn.layers import ClassEmbedding, Conv, Dense, group_norm, time_embedding
from aigc_jax.nn.padding import crop, fill, filled_size
from aigc_jax.ops.activation import silu
from aigc_jax.ops.convolution import depth_to_space, downsample, space_to_depth, upsample


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    channels: tuple[int, ...] = option(
        (32, 64), low=4, nonempty=True
    )  # one entry per level, fine to coarse
    blocks: int = option(2, low=1)  # residual blocks per level
    attention_levels: tuple[int, ...] = option((1,), low=0)  # 0 is the finest
    patch_size: int = option(1, low=1)  # p × p pixels are one place of the finest level
    heads: int = option(4, low=1)
    embedding: int = option(128, low=4)
    dropout: float = option(0.0, low=0.0, high=0.99, init_compatible=True)
    conditional: bool = True  # on the class, if the data has classes
    remat: str = option(
        "none", choices=("none", "full"), resumable=True
    )  # full: keep each block's input only

    head_size: int = option(0, low=0)  # channels of a head, instead of model.heads; 0: by heads
    middle_blocks: int = option(1, low=0, high=2)  # at the coarsest level, between down and up
    middle_attention: str = option("level", choices=("level", "always", "never"))
    middle_groups: int = option(0, low=-1)  # of its attention's norm; 0: norm_groups, −1: no norm
    # How sides are halved and doubled: by means and repeated pixels, with a convolution after
    # repeating and one of stride 2, or within residual blocks of their own.
    resample: str = option("mean", choices=("mean", "conv", "block"))
    down_padding: int = option(1, low=0, high=1)  # conv: zeros before the image; 0: after it
    condition: str = option("scale_shift", choices=("scale_shift", "shift"))  # by the embedding
    residual_scale: float = option(0.5**0.5, low=1e-6)  # of what a residual block gives
    norm_groups: int = option(0, low=0)  # 0: up to 32 of at least 4 channels
    norm_eps: float = option(1e-5, low=0.0)
    frequencies: int = option(0, low=0)  # sines and cosines of the time; 0: model.embedding
    frequency_shift: float = option(0.0, low=0.0, high=1.0)  # 1: the last one is 1/10,000
    sin_first: bool = False  # sines before cosines
    center_input: bool = False  # the input is in [0, 1] and the network takes it to [−1, 1]
    null_class: bool = True  # "no class" has an embedding of its own; otherwise it adds nothing
    learned_sigma: bool = False  # there are outputs for the variance, which are not used

    def __post_init__(self):
        for level in self.attention_levels:
            if level >= len(self.channels):
                raise UserError(
                    f"model.attention_levels names level {level}, but model.channels has only"
                    f" levels 0 to {len(self.channels) - 1}"
                )
        last = len(self.channels) - 1
        for level in (*self.attention_levels, *([last] if self.attends_in_middle else [])):
            name = "head_size" if self.head_size else "heads"
            if self.channels[level] % (self.head_size or self.heads):
                raise UserError(
                    f"model.channels[{level}]={self.channels[level]} must be divisible by"
                    f" model.{name}={self.head_size or self.heads}, since that level has attention"
                )
        check_norm_groups(self.channels, self.norm_groups)

    def filled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of images as the network sees them; UserError if they are too small."""
        what = "model.channels (and with it model.attention_levels)"
        return filled_size(size, len(self.channels) - 1, what, patch=self.patch_size)

    @property
    def attends_in_middle(self) -> bool:
        if not self.middle_blocks or self.middle_attention == "never":
            return False
        return self.middle_attention == "always" or len(self.channels) - 1 in self.attention_levels

    def heads_of(self, level: int) -> int:
        return self.channels[level] // self.head_size if self.head_size else self.heads


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
        levels = range(len(c.channels))
        embedding = self._embedding(time_B, label_B, span_B, augment_BA)
        res_block, attend = self._blocks(embedding, key_B)

        def block(x, level, name):
            x = res_block(x, level, name)
            return attend(x, level, name) if level in c.attention_levels else x

        x = 2 * x_BHWC - 1 if c.center_input else x_BHWC
        x = fill(x, c.filled(x.shape[1:3]))
        x = space_to_depth(x, c.patch_size)
        outputs = x.shape[-1]
        conv_in = Conv(
            c.channels[0],
            (3, 3),
            dtype=self.dtype,
            kernel_axes=("inputs", "stem"),
            name="conv_in",
        )
        x = conv_in(x)
        skips = [x]
        for level in levels:
            if level:
                x = self._down(x, level, res_block)
                skips.append(x)
            for i in range(c.blocks):
                x = block(x, level, f"down_{level}_{i}")
                skips.append(x)
        x = self._middle(x, levels[-1], res_block, attend)
        for level in reversed(levels):
            for i in range(c.blocks + 1):
                x = block(jnp.concatenate([x, skips.pop()], -1), level, f"up_{level}_{i}")
            if level:
                x = self._up(x, level, res_block)
        norm = group_norm(x.shape[-1], self.dtype, "norm_out", c.norm_groups, c.norm_eps)
        x = Conv(
            outputs * (1 + c.learned_sigma),
            (3, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            kernel_axes=("conv_in", "outputs"),
            name="conv_out",
        )(silu(norm(x)))
        x = depth_to_space(x[..., :outputs], c.patch_size)
        return crop(x, x_BHWC.shape[1:3]).astype(jnp.float32)

    def _embedding(self, time_B, label_B, span_B, augment_BA):
        """What the blocks are conditioned on, (B, E), through SiLU."""
        c = self.config

        def dense(name, axes, use_bias=True):
            return Dense(c.embedding, use_bias, dtype=self.dtype, kernel_axes=axes, name=name)

        def embed(time_B, name):
            size = c.frequencies or c.embedding
            y = time_embedding(time_B, size, shift=c.frequency_shift, sin_first=c.sin_first)
            y = dense(f"{name}_in", ("inputs", "stem"))(y)
            return dense(f"{name}_out", ("mlp", "embed"))(silu(y))

        embedding = embed(time_B, "time")
        if span_B is not None:
            embedding += embed(span_B, "span")
        if augment_BA is not None:
            embedding += dense("augment", ("inputs", "embed"), use_bias=False)(augment_BA)
        if self.num_classes and label_B is not None:
            table = ClassEmbedding(
                self.num_classes, c.embedding, c.null_class, name="class_embedding"
            )
            embedding += table(label_B).astype(self.dtype)
        return silu(embedding)

    def _blocks(self, embedding, key_B):
        """Functions of (x, level, name): a residual block, and attention after the block `name`."""
        c, parts = self.config, (ResBlock, SelfAttention)
        res_block, self_attention = map(nn.remat, parts) if c.remat == "full" else parts
        norm = dict(groups=c.norm_groups, eps=c.norm_eps)
        kind = dict(condition=c.condition, residual_scale=c.residual_scale, **norm)

        def residual(x, level, name, resample=""):
            made = res_block(
                c.channels[level], c.dropout, self.dtype, resample=resample, name=name, **kind
            )
            return made(x, embedding, key_B)

        def attend(x, level, name, **changes):
            name = f"{name}_attention"
            return self_attention(c.heads_of(level), self.dtype, name=name, **norm | changes)(x)

        return residual, attend

    def _middle(self, x, level, res_block, attend):
        c = self.config
        if c.middle_blocks:
            x = res_block(x, level, "middle")
        if c.attends_in_middle:
            x = attend(x, level, "middle", groups=c.middle_groups or c.norm_groups)
        return res_block(x, level, "middle_out") if c.middle_blocks == 2 else x

    def _down(self, x, level, res_block):
        """From the level above to `level`."""
        if self.config.resample == "block":
            return res_block(x, level - 1, f"down_{level}", "down")
        if self.config.resample == "conv":
            return Down(self.dtype, self.config.down_padding, name=f"down_{level}")(x)
        return downsample(x)

    def _up(self, x, level, res_block):
        """From `level` to the size of the level above."""
        if self.config.resample == "block":
            return res_block(x, level, f"up_{level}", "up")
        return (
            Up(self.dtype, name=f"up_{level}")(x) if self.config.resample == "conv" else upsample(x)
        )
