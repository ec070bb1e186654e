"""DiT: a diffusion transformer over patches (Peebles & Xie 2023).

Every block is conditioned by adaptive layer norm whose gates begin at zero (adaLN-zero), so that a
fresh block does nothing and a fresh network gives zeros.
Shapes: B batch, H height, W width, C channels, P patch size, T patches, D model width, N heads,
L layers, K classes, A augmentation labels.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import (
    ClassEmbedding,
    Conv,
    Dense,
    Dropout,
    Norm,
    scan_unroll,
    time_embedding,
)
from aigc_jax.nn.padding import crop, fill, filled_size
from aigc_jax.ops.activation import ACTIVATIONS, silu
from aigc_jax.ops.attention import attention
from aigc_jax.ops.convolution import depth_to_space
from aigc_jax.ops.rope import rotary_frequencies, rotate

ROTARY_BASE = 100.0  # patches are few along a side, so the frequencies are high (Heo et al. 2024)


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    patch_size: int = option(2, low=1)
    width: int = option(128, low=4)
    depth: int = option(4, low=1)  # blocks
    heads: int = option(4, low=1)
    mlp_ratio: float = option(4.0, low=0.01)
    conditional: bool = True  # on the class, if the data has classes
    dropout: float = option(0.0, low=0.0, high=0.99, init_compatible=True)
    positions: str = option("sincos", choices=("sincos", "rotary"))
    qk_norm: bool = False  # RMS norm of each head's queries and keys
    qkv_bias: bool = True
    activation: str = option("gelu", choices=("gelu", "gelu_exact", "silu"))
    frequencies: int = option(256, low=4)  # sines and cosines of the time
    frequency_shift: float = option(0.0, low=0.0, high=1.0)  # 1: the last one is 1/10,000
    mlp_norm_eps: float = option(1e-6, low=0.0)  # of the norm before the perceptron
    # Time and class have one embedding for all blocks, or every block its own, as diffusers' has.
    embedders: str = option("shared", choices=("shared", "per_block"))
    learned_sigma: bool = False  # there are outputs for the variance, which are not used
    remat: str = option(
        "none", choices=("none", "full"), resumable=True
    )  # full: keep each block's input only
    scan_unroll: int = option(
        0, low=0, resumable=True
    )  # blocks in one turn of the loop; 0: by platform

    def __post_init__(self):
        if self.width % (4 * self.heads):
            raise UserError(
                f"model.width={self.width} must be divisible by 4 · model.heads={4 * self.heads}:"
                " positions turn pairs of columns and of rows"
            )

    def length_of(self, spec: Any) -> int:
        """Patches of an image."""
        height, width = self.filled(spec.shape[:2])
        return (height // self.patch_size) * (width // self.patch_size)

    def filled(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of images as the network sees them; UserError if they are below a patch."""
        return filled_size(size, 0, "", patch=self.patch_size)

    @property
    def hidden(self) -> int:
        """The width inside the perceptron."""
        return round(self.mlp_ratio * self.width)


def sincos_positions(height: int, width: int, size: int) -> jax.Array:
    """Sines and cosines of the column, then of the row, of each patch: (height · width, size)."""
    frequency = 10_000.0 ** (-np.arange(size // 4) / (size // 4))

    def waves(position):
        angle = position.reshape(-1, 1) * frequency.astype(np.float32)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

    row, column = jnp.mgrid[:height, :width]
    return jnp.concatenate([waves(column), waves(row)], -1)


def dense(
    features: int,
    dtype: jnp.dtype,
    name: str,
    axes: tuple[str, str],
    init: Any = None,
    **kw: Any,
) -> Dense:
    """Xavier's initialisation unless `init` says otherwise; `axes`: the kernel's logical axes."""
    init = init or nn.initializers.xavier_uniform()
    return Dense(features, kernel_init=init, dtype=dtype, kernel_axes=axes, name=name, **kw)


def layer_norm(eps: float = 1e-6) -> Norm:
    """Without a learned scale: the condition gives one."""
    return Norm("layernorm", eps, use_bias=False, learned=False)


def modulate(x_BTD: jax.Array, shift_BD: jax.Array, scale_BD: jax.Array) -> jax.Array:
    return x_BTD * (1 + scale_BD[:, None]) + shift_BD[:, None]


class TimeEmbedder(nn.Module):
    """Times → (B, D) by two dense layers."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, time_B):
        c, init = self.config, nn.initializers.normal(0.02)
        y = time_embedding(time_B, c.frequencies, shift=c.frequency_shift)
        y = silu(dense(c.width, self.dtype, "in", ("inputs", "stem"), init)(y))
        return dense(c.width, self.dtype, "out", ("mlp", "embed"), init)(y)


class Embedder(nn.Module):
    """(time, label) → the condition (B, D)."""

    config: DiTConfig
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, time_B, label_B):
        condition = TimeEmbedder(self.config, self.dtype, name="time")(time_B)
        if self.num_classes and label_B is not None:
            init = nn.initializers.normal(0.02)
            table = ClassEmbedding(self.num_classes, self.config.width, init=init, name="class")
            condition += table(label_B).astype(self.dtype)
        return condition


class Attention(nn.Module):
    """Every patch attends to all."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, place):
        c, (batch, length, width) = self.config, x_BTD.shape
        project = dense(3 * width, self.dtype, "qkv", ("embed", "heads"), use_bias=c.qkv_bias)
        qkv = project(x_BTD)
        q, k, v = jnp.split(qkv.reshape(batch, length, 3 * c.heads, width // c.heads), 3, 2)
        if c.qk_norm:
            q, k = (
                Norm(dtype=self.dtype, name=f"{name}_norm")(y)
                for name, y in (("query", q), ("key", k))
            )
        if c.positions == "rotary":
            q, k = turned(q, place), turned(k, place)
        # Each device has queries of its patches, and the keys and values of all.
        q = with_logical_constraint(q, "batch", "length", "heads", None)
        k, v = (with_logical_constraint(y, "batch", None, "heads", None) for y in (k, v))
        y = attention(q, k, v).reshape(batch, length, width)
        return dense(width, self.dtype, "out", ("heads", "embed"))(y)


def turned(x_BTND: jax.Array, place: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Half of each head turned by the patch's column, half by its row."""
    halves = jnp.split(x_BTND, 2, -1)
    frequencies, _ = rotary_frequencies(halves[0].shape[-1], ROTARY_BASE)
    turns = [rotate(x, at, frequencies) for x, at in zip(halves, place, strict=True)]
    return jnp.concatenate(turns, -1)


class Block(nn.Module):
    """x + gate · attention(norm(x)), then x + gate · mlp(norm(x)), both modulated."""

    config: DiTConfig
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, layer, condition_BD, time_B, label_B, key_B, place):
        """One turn of the loop over layers: (x, the block's condition)."""
        c = self.config
        if c.embedders == "per_block":
            embedder = Embedder(c, self.num_classes, self.dtype, name="embedder")
            condition_BD = condition_BD + embedder(time_B, label_B)
        if key_B is not None:  # every layer drops its own
            key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, layer)
        zeros = nn.initializers.zeros
        modulate_by = dense(6 * c.width, self.dtype, "modulation", ("embed", "mlp"), zeros)
        modulation = modulate_by(silu(condition_BD))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, -1)

        y = modulate(layer_norm()(x_BTD), shift, scale)
        y = Attention(c, self.dtype, name="attention")(y, place)
        y = Dropout(c.dropout, name="attention_dropout")(y, key_B)
        x_BTD = x_BTD + gate[:, None] * y
        y = modulate(layer_norm(c.mlp_norm_eps)(x_BTD), mlp_shift, mlp_scale)
        mlp_in = dense(c.hidden, self.dtype, "mlp_in", ("embed", "mlp"), bias_axes=("mlp",))
        y = Dropout(c.dropout, name="mlp_dropout")(ACTIVATIONS[c.activation](mlp_in(y)), key_B)
        y = dense(c.width, self.dtype, "mlp_out", ("mlp", "embed"))(y)
        x_BTD = with_logical_constraint(x_BTD + mlp_gate[:, None] * y, "batch", "length", None)
        return x_BTD, condition_BD


class DiT(nn.Module):
    """(noisy image, time, label) → an image-shaped float32 output.

    Attributes:
      config: sizes.
      num_classes: K; 0 for an unconditional model.
      dtype: of the computation.
    """

    config: DiTConfig
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
        """As `UNet`; images that cannot be cut into patches are filled up by their border."""
        c, (batch, height, width, colours) = self.config, x_BHWC.shape
        p, filled = c.patch_size, c.filled((height, width))
        rows, columns = filled[0] // p, filled[1] // p
        x = self._patches(fill(x_BHWC, filled))
        if c.positions == "sincos":
            x += sincos_positions(rows, columns, c.width).astype(self.dtype)
        x = with_logical_constraint(x, "batch", "length", None)
        condition = self._condition(batch, time_B, label_B, span_B, augment_BA)
        row, column = jnp.mgrid[:rows, :columns].reshape(2, 1, -1)
        place = (column, row)
        given = (condition, time_B, label_B, key_B, place)
        x, conditions = self._layers()(x, jnp.arange(c.depth), *given)
        condition = conditions[0]  # that of the first block also ends the network
        zeros = nn.initializers.zeros
        last = dense(2 * c.width, self.dtype, "final_modulation", ("embed", "mlp"), zeros)(
            silu(condition)
        )
        x = modulate(layer_norm()(x), *jnp.split(last, 2, -1))
        outputs = colours * (1 + c.learned_sigma)
        x = dense(p * p * outputs, self.dtype, "final", ("embed", "outputs"), zeros)(x)
        image = depth_to_space(x.reshape(batch, rows, columns, -1), p)
        return crop(image[..., :colours], (height, width)).astype(jnp.float32)

    def _patches(self, x_BHWC):
        """(B, T, D); each patch by one dense layer, written as a convolution."""
        c = self.config
        init = nn.initializers.xavier_uniform(in_axis=(0, 1, 2), out_axis=3)
        size = (c.patch_size, c.patch_size)
        conv = Conv(
            c.width,
            size,
            size,
            "VALID",
            kernel_init=init,
            dtype=self.dtype,
            kernel_axes=("inputs", "embed"),
            name="patch",
        )
        return conv(x_BHWC).reshape(x_BHWC.shape[0], -1, c.width)

    def _condition(self, batch, time_B, label_B, span_B, augment_BA):
        """What all blocks are conditioned on alike, (B, D)."""
        c, condition = self.config, jnp.zeros((batch, self.config.width), self.dtype)
        if c.embedders == "shared":
            embedder = Embedder(c, self.num_classes, self.dtype, name="embedder")
            condition += embedder(time_B, label_B)
        if span_B is not None:
            condition += TimeEmbedder(c, self.dtype, name="span")(span_B)
        if augment_BA is not None:
            augment = dense(c.width, self.dtype, "augment", ("inputs", "embed"), use_bias=False)
            condition += augment(augment_BA)
        return condition

    def _layers(self):
        c, block = self.config, Block
        if c.remat == "full":
            block = nn.remat(Block, prevent_cse=False)
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            metadata_params={nn.PARTITION_NAME: "layers"},
            in_axes=(0, *[nn.broadcast] * 5),
            length=c.depth,
            unroll=scan_unroll(c.scan_unroll, c.depth),
        )(c, self.num_classes, self.dtype, name="layers")
