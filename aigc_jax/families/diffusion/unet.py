"""A diffusion U-Net: residual blocks conditioned on the time and more, attention at chosen levels.

By config it is a small network with the adaptive group norm of Dhariwal & Nichol (2021), the
default, or that of Ho et al. (2020), DDPM, as diffusers' UNet2DModel has it. It takes examples with
any number of spatial axes.
Shapes: B batch, … spatial axes, C channels, E embedding size, K classes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Condition, Conditions
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.nn.conditioner import (
    ClassEmbedder,
    Conditioner,
    Embedder,
    Embedding,
    VectorEmbedder,
    check_no_sequence,
    with_picture,
)
from aigc_jax.nn.conv_blocks import (
    Down,
    ResBlock,
    SelfAttention,
    Up,
    check_norm_groups,
    per_axis,
)
from aigc_jax.nn.layers import Conv, Dense, make_group_norm, time_embedding
from aigc_jax.nn.padding import crop, fill, filled_size
from aigc_jax.ops.activation import silu
from aigc_jax.ops.convolution import depth_to_space, downsample, space_to_depth, upsample


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    # One entry per level, fine to coarse.
    channels: tuple[int, ...] = option((32, 64), low=4, nonempty=True)
    blocks: int = option(2, low=1)  # residual blocks per level
    attention_levels: tuple[int, ...] = option((1,), low=0)  # 0 is the finest
    patch_size: int = option(1, low=1)  # side of the patches that the finest level sees as pixels
    heads: int = option(4, low=1)
    embedding: int = option(128, low=4)
    dropout: float = option(0.0, low=0.0, high=0.99, init_compatible=True)
    conditional: bool = True  # on the class, if the data has classes
    # full: keep each block's input only
    remat: str = option("none", choices=("none", "full"), resumable=True)

    head_size: int = option(0, low=0)  # channels of a head, instead of model.heads; 0: by heads
    middle_blocks: int = option(1, low=0, high=2)  # at the coarsest level, between down and up
    middle_attention: str = option("level", choices=("level", "always", "never"))
    middle_groups: int = option(0, low=-1)  # of its attention's norm; 0: norm_groups, −1: no norm
    # Resizing: by means and repetition; by convolutions, of stride 2 and after repetition; or in
    # residual blocks of its own.
    resample: str = option("mean", choices=("mean", "conv", "block"))
    down_padding: int = option(1, low=0, high=1)  # conv: zeros before the image; 0: after it
    condition: str = option("scale_shift", choices=("scale_shift", "shift"))  # by the embedding
    residual_scale: float = option(0.5**0.5, low=1e-6)  # of a residual block's output
    norm_groups: int = option(0, low=0)  # 0: up to 32 of at least 4 channels
    norm_eps: float = option(1e-5, low=0.0)
    frequencies: int = option(0, low=0)  # sines and cosines of the time; 0: model.embedding
    frequency_shift: float = option(0.0, low=0.0, high=1.0)  # 1: the last one is 1/10,000
    sin_first: bool = False  # sines before cosines
    center_input: bool = False  # the input is in [0, 1] and the network takes it to [−1, 1]
    null_class: bool = True  # "no class" has an embedding of its own; otherwise it adds nothing
    learned_sigma: bool = False  # has outputs for the variance, which are not used

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

    def filled(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes after padding; raises UserError if `size` is too small."""
        fields = "model.channels (and with it model.attention_levels)"
        return filled_size(size, len(self.channels) - 1, fields, patch=self.patch_size)

    @property
    def attends_in_middle(self) -> bool:
        """Whether there is attention between the ways down and up."""
        if not self.middle_blocks or self.middle_attention == "never":
            return False
        return self.middle_attention == "always" or len(self.channels) - 1 in self.attention_levels

    def heads_of(self, level: int) -> int:
        """Attention heads of a level."""
        return self.channels[level] // self.head_size if self.head_size else self.heads


class UNet(nn.Module):
    """(noisy example, time, conditions) → a float32 output of the example's shape.

    Attributes:
      config: sizes.
      num_classes: K; 0 for a network without classes.
      dtype: of the computation.
      embedders: of further conditions, by name; vectors of size model.embedding, or pictures.
    """

    config: UNetConfig
    num_classes: int
    dtype: jnp.dtype = jnp.float32
    embedders: Mapping[str, Embedder] = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        time_B: jax.Array,
        conditions: Conditions | None = None,
        key_B: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output, of the shape of `x`.

        Args:
          x: noisy examples (B, …, C).
          time_B: from 0 to 1000.
          conditions: the network knows "label" (B,), the class; "augmentation" (B, A), see
            `ops/augment.py` (Karras et al. 2022, F.2); "delta_t" (B,), the time that a step covers,
            from 0 to 1000 (Geng et al. 2025, MeanFlow); and those of `embedders`. A condition has
            parameters if `init` is given it.
          key_B: dropout keys; None: no dropout.
        """
        c, size, channels = self.config, x.shape[1:-1], x.shape[-1]
        levels = range(len(c.channels))
        embedding = self._conditioner()({**(conditions or {}), "time": Condition.of(time_B)})
        check_no_sequence(embedding, "unet")
        assert embedding.vector is not None  # the time is always there
        res_block, attend = self._blocks(silu(embedding.vector), key_B)

        def block(x, level, name):
            x = res_block(x, level, name)
            return attend(x, level, name) if level in c.attention_levels else x

        x = with_picture(2 * x - 1 if c.center_input else x, embedding)
        x = space_to_depth(fill(x, c.filled(size)), c.patch_size)
        axes = ("inputs", "stem")
        conv_in = Conv(
            c.channels[0], per_axis(x, 3), dtype=self.dtype, kernel_axes=axes, name="conv_in"
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
        return self._output(x, size, channels)

    def _output(self, x: jax.Array, size: Sequence[int], channels: int) -> jax.Array:
        """From the finest level to the shape of the example."""
        c = self.config
        outputs = channels * c.patch_size ** len(size)
        norm = make_group_norm(x.shape[-1], self.dtype, "norm_out", c.norm_groups, c.norm_eps)
        x = Conv(
            outputs * (1 + c.learned_sigma),
            per_axis(x, 3),
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            kernel_axes=("conv_in", "outputs"),
            name="conv_out",
        )(silu(norm(x)))
        x = depth_to_space(x[..., :outputs], c.patch_size)
        return crop(x, size).astype(jnp.float32)

    def _conditioner(self) -> Conditioner:
        """Embeds the time and all conditions in vectors (B, E), or pictures."""
        c = self.config

        def embed_time(name: str) -> Embedder:
            def dense(part, axes):
                name_ = f"{name}_{part}"
                return Dense(c.embedding, dtype=self.dtype, kernel_axes=axes, name=name_)

            def embed(time_B, present_B):
                size, time_B = c.frequencies or c.embedding, jnp.where(present_B, time_B, 0)
                y = time_embedding(time_B, size, shift=c.frequency_shift, sin_first=c.sin_first)
                y = silu(dense("in", ("inputs", "stem"))(y))
                return Embedding(vector=dense("out", ("mlp", "embed"))(y))

            return embed

        embedders: dict[str, Embedder] = {
            "time": embed_time("time"),
            "delta_t": embed_time("delta_t"),
            "augmentation": VectorEmbedder(c.embedding, self.dtype, name="augment"),
        }
        if self.num_classes:
            embedders["label"] = ClassEmbedder(
                self.num_classes,
                c.embedding,
                c.null_class,
                dtype=self.dtype,
                name="class_embedding",
            )
        return Conditioner({**embedders, **self.embedders})

    def _blocks(self, embedding: jax.Array, key_B: jax.Array | None) -> tuple[Callable, Callable]:
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

    def _middle(self, x: jax.Array, level: int, res_block: Callable, attend: Callable) -> jax.Array:
        c = self.config
        if c.middle_blocks:
            x = res_block(x, level, "middle")
        if c.attends_in_middle:
            x = attend(x, level, "middle", groups=c.middle_groups or c.norm_groups)
        return res_block(x, level, "middle_out") if c.middle_blocks == 2 else x

    def _down(self, x: jax.Array, level: int, res_block: Callable) -> jax.Array:
        """From the level above to `level`."""
        if self.config.resample == "block":
            return res_block(x, level - 1, f"down_{level}", "down")
        if self.config.resample == "conv":
            return Down(self.dtype, self.config.down_padding, name=f"down_{level}")(x)
        return downsample(x)

    def _up(self, x: jax.Array, level: int, res_block: Callable) -> jax.Array:
        """From `level` to the size of the level above."""
        if self.config.resample == "block":
            return res_block(x, level, f"up_{level}", "up")
        return (
            Up(self.dtype, name=f"up_{level}")(x) if self.config.resample == "conv" else upsample(x)
        )
