"""DiT: a diffusion transformer over patches (Peebles & Xie 2023), of any number of spatial axes.

Every block is conditioned by adaptive layer norm whose gates begin at zero (adaLN-zero), so that a
fresh block does nothing and a fresh network gives zeros.
Shapes: B batch, … spatial axes, C channels, T patches, D model width, N heads, K classes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import Condition, Conditions
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.families.diffusion.patch_positions import rotate_axes, sincos_positions
from aigc_jax.nn.conditioner import (
    ClassEmbedder,
    Conditioner,
    Embedder,
    Embedding,
    VectorEmbedder,
    check_no_sequence,
    with_picture,
)
from aigc_jax.nn.layers import Conv, Dense, Dropout, Norm, scan_unroll, time_embedding
from aigc_jax.nn.padding import crop, fill, filled_size
from aigc_jax.ops.activation import ACTIVATIONS, silu
from aigc_jax.ops.attention import attention
from aigc_jax.ops.convolution import depth_to_space


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
    learned_sigma: bool = False  # has outputs for the variance, which are not used
    # full: keep each block's input only
    remat: str = option("none", choices=("none", "full"), resumable=True)
    scan_unroll: int = option(0, low=0, resumable=True)  # blocks per loop turn; 0: by platform

    def __post_init__(self):
        if self.width % (4 * self.heads):
            raise UserError(
                f"model.width={self.width} must be divisible by 4 · model.heads={4 * self.heads}:"
                " rows and columns are each encoded by pairs of numbers"
            )

    def length_of(self, spec: Any) -> int:
        """Patches of an example."""
        return math.prod(n // self.patch_size for n in self.filled(spec.shape[:-1]))

    def filled(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes after padding; raises UserError if `size` is smaller than a patch."""
        return filled_size(size, 0, "", patch=self.patch_size)

    @property
    def hidden(self) -> int:
        """The width inside the perceptron."""
        return round(self.mlp_ratio * self.width)


def dense(
    features: int,
    dtype: jnp.dtype,
    name: str,
    axes: tuple[str, str],
    init: Any = None,
    **kw: Any,
) -> Dense:
    """A dense layer, by default with Xavier initialisation; `axes`: the kernel's logical axes."""
    init = init or nn.initializers.xavier_uniform()
    return Dense(features, kernel_init=init, dtype=dtype, kernel_axes=axes, name=name, **kw)


def layer_norm(eps: float = 1e-6) -> Norm:
    """Layer norm without a learned scale, which the condition gives."""
    return Norm("layernorm", eps, use_bias=False, learned=False)


def modulate(x_BTD: jax.Array, shift_BD: jax.Array, scale_BD: jax.Array) -> jax.Array:
    """Scales by 1 + scale and shifts, per example."""
    return x_BTD * (1 + scale_BD[:, None]) + shift_BD[:, None]


class TimeEmbedder(nn.Module):
    """Embeds times (B,), in units of 0…1000, as (B, D) by two dense layers."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, time_B: jax.Array, present_B: jax.Array) -> Embedding:
        c, init = self.config, nn.initializers.normal(0.02)
        time_B = jnp.where(present_B, time_B, 0)
        y = time_embedding(time_B, c.frequencies, shift=c.frequency_shift)
        y = silu(dense(c.width, self.dtype, "in", ("inputs", "stem"), init)(y))
        return Embedding(vector=dense(c.width, self.dtype, "out", ("mlp", "embed"), init)(y))


class TimeAndClassEmbedder(nn.Module):
    """Embeds the time and the class as (B, D)."""

    config: DiTConfig
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, conditions: Conditions) -> jax.Array:
        c = self.config
        embedders: dict[str, Embedder] = {"time": TimeEmbedder(c, self.dtype, name="time")}
        if self.num_classes:
            init = nn.initializers.normal(0.02)
            embedders["label"] = ClassEmbedder(
                self.num_classes, c.width, table_init=init, dtype=self.dtype, name="class"
            )
        vector = Conditioner(embedders)(conditions).vector
        assert vector is not None  # the time is always there
        return vector


class Attention(nn.Module):
    """Every patch attends to all."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD: jax.Array, positions: Sequence[jax.Array]) -> jax.Array:
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
            q, k = rotate_axes(q, positions), rotate_axes(k, positions)
        # Each device has queries of its patches, and the keys and values of all.
        q = with_logical_constraint(q, "batch", "length", "heads", None)
        k, v = (with_logical_constraint(y, "batch", None, "heads", None) for y in (k, v))
        y = attention(q, k, v).reshape(batch, length, width)
        return dense(width, self.dtype, "out", ("heads", "embed"))(y)


class Block(nn.Module):
    """x + gate · attention(norm(x)), then x + gate · mlp(norm(x)), both modulated."""

    config: DiTConfig
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        layer: jax.Array,
        condition_BD: jax.Array,
        conditions: Conditions,
        key_B: jax.Array | None,
        positions: Sequence[jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """One turn of the loop over layers: (x, the block's condition)."""
        c = self.config
        if c.embedders == "per_block":
            embedder = TimeAndClassEmbedder(c, self.num_classes, self.dtype, name="embedder")
            condition_BD = condition_BD + embedder(conditions)
        if key_B is not None:  # every layer drops its own
            key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, layer)
        zeros = nn.initializers.zeros
        modulate_by = dense(6 * c.width, self.dtype, "modulation", ("embed", "mlp"), zeros)
        modulation = modulate_by(silu(condition_BD))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, -1)

        y = modulate(layer_norm()(x_BTD), shift, scale)
        y = Attention(c, self.dtype, name="attention")(y, positions)
        y = Dropout(c.dropout, name="attention_dropout")(y, key_B)
        x_BTD = x_BTD + gate[:, None] * y
        y = modulate(layer_norm(c.mlp_norm_eps)(x_BTD), mlp_shift, mlp_scale)
        mlp_in = dense(c.hidden, self.dtype, "mlp_in", ("embed", "mlp"), bias_axes=("mlp",))
        y = Dropout(c.dropout, name="mlp_dropout")(ACTIVATIONS[c.activation](mlp_in(y)), key_B)
        y = dense(c.width, self.dtype, "mlp_out", ("mlp", "embed"))(y)
        x_BTD = with_logical_constraint(x_BTD + mlp_gate[:, None] * y, "batch", "length", None)
        return x_BTD, condition_BD


class DiT(nn.Module):
    """(noisy example, time, conditions) → a float32 output of the example's shape.

    Attributes:
      config: sizes.
      num_classes: K; 0 for a network without classes.
      dtype: of the computation.
      embedders: of further conditions, by name; vectors of size model.width, or pictures.
    """

    config: DiTConfig
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
        """The network's output, of the shape of `x`; args as those of `UNet`."""
        c, (batch, *size, channels) = self.config, x.shape
        filled = c.filled(size)
        sides = [n // c.patch_size for n in filled]
        conditions = {**(conditions or {}), "time": Condition.of(time_B)}
        condition, embedding = self._condition(batch, conditions)
        x = self._patches(fill(with_picture(x, embedding), filled))
        if c.positions == "sincos":
            x += sincos_positions(sides, c.width).astype(self.dtype)
        x = with_logical_constraint(x, "batch", "length", None)
        positions = tuple(jnp.indices(sides).reshape(len(sides), 1, -1)[::-1])
        layers = jnp.arange(c.depth)
        x, per_layer = self._layers()(x, layers, condition, conditions, key_B, positions)
        condition = per_layer[0]  # that of the first block also conditions the last layer
        zeros = nn.initializers.zeros
        last = dense(2 * c.width, self.dtype, "final_modulation", ("embed", "mlp"), zeros)(
            silu(condition)
        )
        x = modulate(layer_norm()(x), *jnp.split(last, 2, -1))
        outputs = c.patch_size ** len(sides) * channels * (1 + c.learned_sigma)
        x = dense(outputs, self.dtype, "final", ("embed", "outputs"), zeros)(x)
        x = depth_to_space(x.reshape(batch, *sides, -1), c.patch_size)
        return crop(x[..., :channels], size).astype(jnp.float32)

    def _patches(self, x: jax.Array) -> jax.Array:
        """(B, T, D): a dense layer of each patch, written as a convolution."""
        c, spatial = self.config, x.ndim - 2
        init = nn.initializers.xavier_uniform(
            in_axis=tuple(range(spatial + 1)), out_axis=spatial + 1
        )
        size = (c.patch_size,) * spatial
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
        return conv(x).reshape(x.shape[0], -1, c.width)

    def _condition(self, batch: int, conditions: Conditions) -> tuple[jax.Array, Embedding]:
        """The vector (B, D) that conditions all blocks, and the embedding with its picture."""
        c, condition = self.config, jnp.zeros((batch, self.config.width), self.dtype)
        if c.embedders == "shared":
            embedder = TimeAndClassEmbedder(c, self.num_classes, self.dtype, name="embedder")
            condition += embedder(conditions)
        xavier = nn.initializers.xavier_uniform()
        further: dict[str, Embedder] = {
            "delta_t": TimeEmbedder(c, self.dtype, name="delta_t"),
            "augmentation": VectorEmbedder(c.width, self.dtype, xavier, name="augment"),
        }
        embedding = Conditioner({**further, **self.embedders})(conditions)
        check_no_sequence(embedding, "dit")
        if embedding.vector is not None:
            condition += embedding.vector
        return condition, embedding

    def _layers(self) -> nn.Module:
        """All blocks, as one loop."""
        c, block = self.config, Block
        if c.remat == "full":
            block = nn.remat(Block, prevent_cse=False)
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            metadata_params={nn.PARTITION_NAME: "layers"},
            in_axes=(0, *[nn.broadcast] * 4),
            length=c.depth,
            unroll=scan_unroll(c.scan_unroll, c.depth),
        )(c, self.num_classes, self.dtype, name="layers")
