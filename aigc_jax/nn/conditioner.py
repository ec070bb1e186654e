"""Conditioner: embeds conditions as a vector, a sequence with its mask, and a picture.

Shapes: B examples, E embedding size, S positions and W width of a sequence, C channels.
"""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from aigc_jax.core.conditions import LABEL, Conditions
from aigc_jax.core.errors import UserError
from aigc_jax.nn.layers import Dense, Initializer, partitioned
from aigc_jax.ops.dense import dense
from aigc_jax.ops.per_example import expand_like


@flax.struct.dataclass
class Embedding:
    """Embedding of conditions; each part is None if there is none.

    Attributes:
      vector: (B, E), for adaptive norms.
      sequence: (B, S, W), for cross-attention.
      mask: (B, S) bool, False for padding of `sequence`.
      picture: (B, *spatial, C), concatenated with the input of a network.
    """

    vector: jax.Array | None = None
    sequence: jax.Array | None = None
    mask: jax.Array | None = None
    picture: jax.Array | None = None

    def merge(self, other: "Embedding") -> "Embedding":
        """Adds vectors, and concatenates sequences along S and pictures along C."""
        return Embedding(
            _merge(self.vector, other.vector, jnp.add),
            _merge(self.sequence, other.sequence, _join(1)),
            _merge(self.mask, other.mask, _join(1)),
            _merge(self.picture, other.picture, _join(-1)),
        )


Merge = Callable[[jax.Array, jax.Array], jax.Array]


def _merge(a: jax.Array | None, b: jax.Array | None, both: Merge) -> jax.Array | None:
    if a is None or b is None:
        return b if a is None else a
    return both(a, b)


def _join(axis: int) -> Merge:
    return lambda a, b: jnp.concatenate([a, b], axis)


# Maps (value (B, …), present_B bool) to an embedding: a module, or a function that calls modules.
# Examples without the condition get the null embedding.
Embedder = Callable[[jax.Array, jax.Array], Embedding]


class Conditioner:
    """Embeds the conditions that a network supports; ignores the others.

    It has no parameters: those of its embedders belong to the module that creates them. An embedder
    has no parameters if its condition is missing in `init`.

    Args:
      embedders: embedders by name of the condition; embeddings are merged in this order.
    """

    def __init__(self, embedders: Mapping[str, Embedder]):
        self.embedders = dict(embedders)

    def __call__(self, conditions: Conditions) -> Embedding:
        """Returns the merged embedding of all conditions."""
        merged = Embedding()
        for name, embedder in self.embedders.items():
            if name in conditions:
                condition = conditions[name]
                merged = merged.merge(embedder(condition.value, condition.present_B))
        return merged


def with_picture(x: jax.Array, embedding: Embedding) -> jax.Array:
    """Concatenates `x` (B, *spatial, C) with the picture, if there is one, along channels.

    Raises:
      UserError: if their spatial sizes differ.
    """
    picture = embedding.picture
    if picture is None:
        return x
    if picture.shape[1:-1] != x.shape[1:-1]:
        sizes = ["×".join(map(str, y.shape[1:-1])) for y in (picture, x)]
        raise UserError(
            f"a condition of {sizes[0]} cannot be concatenated with an example of {sizes[1]}:"
            " resize it to the example's size"
        )
    return jnp.concatenate([x, picture.astype(x.dtype)], -1)


def check_no_sequence(embedding: Embedding, network: str) -> None:
    """Raises UserError if there is a sequence; for networks without cross-attention."""
    if embedding.sequence is not None:
        raise UserError(
            f"model.name={network} has no cross-attention, so a condition cannot be a sequence:"
            " embed it as a vector"
        )


class ClassEmbedder(nn.Module):
    """Learned embedding of classes: labels (B,) to vectors (B, features).

    Attributes:
      num_classes: K; the label K also means "no class".
      features: embedding size.
      null: whether "no class" has a learned vector; otherwise it is zero.
      table_init: initialiser of the table (K + null, features).
      dtype: dtype of the embedding.
    """

    num_classes: int
    features: int
    null: bool = True
    table_init: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, label_B: jax.Array, present_B: jax.Array) -> Embedding:
        shape = (self.num_classes + self.null, self.features)
        table = self.param("embedding", partitioned(self.table_init, ("classes", "embed")), shape)
        label_B = jnp.where(present_B, label_B, self.num_classes)
        known_B = label_B < len(table)
        vectors = jnp.take(table, jnp.where(known_B, label_B, 0), axis=0)
        return Embedding(vector=jnp.where(known_B[:, None], vectors, 0).astype(self.dtype))


@dataclasses.dataclass(frozen=True)
class OneHotEmbedder:
    """One-hot encoding: labels (B,) to (B, num_classes); zeros without a label."""

    num_classes: int

    def __call__(self, label_B: jax.Array, present_B: jax.Array) -> Embedding:
        label_B = jnp.where(present_B, label_B, self.num_classes)
        return Embedding(vector=jax.nn.one_hot(label_B, self.num_classes))


class VectorEmbedder(nn.Module):
    """Linear embedding of (B, A) to (B, features) without bias; zeros without the condition."""

    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, value_BA: jax.Array, present_B: jax.Array) -> Embedding:
        kernel = partitioned(self.kernel_init, ("inputs", "embed"))
        kernel_AE = self.param("kernel", kernel, (value_BA.shape[-1], self.features))
        value_BA = jnp.where(present_B[:, None], value_BA, 0).astype(self.dtype)
        return Embedding(vector=dense(value_BA, kernel_AE.astype(self.dtype)))


class SequenceEmbedder(nn.Module):
    """Embeds vectors (B, S, I) as a sequence (B, S, width) by a dense layer.

    Positions whose vector is zero are padding. Examples without the condition have one learned
    vector at their first position instead, so that attention always has a visible key.
    """

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, value_BSI: jax.Array, present_B: jax.Array) -> Embedding:
        axes = ("inputs", "embed")
        sequence = Dense(self.width, dtype=self.dtype, kernel_axes=axes, name="project")(value_BSI)
        start = partitioned(nn.initializers.normal(0.02), ("embed",))
        null = self.param("null", start, (self.width,)).astype(self.dtype)
        first_S = jnp.arange(value_BSI.shape[1]) == 0
        mask = jnp.where(present_B[:, None], (value_BSI != 0).any(-1), first_S)
        return Embedding(sequence=jnp.where(present_B[:, None, None], sequence, null), mask=mask)


class PictureEmbedder(nn.Module):
    """Passes a picture (B, *spatial, C) through; zeros without one."""

    def __call__(self, picture: jax.Array, present_B: jax.Array) -> Embedding:
        return Embedding(picture=jnp.where(expand_like(present_B, picture), picture, 0))


def class_one_hot(conditions: Conditions | None, batch: int, num_classes: int) -> jax.Array:
    """Returns the classes of the examples as one-hot vectors (B, K) float32; zeros without one.

    Args:
      conditions: conditions of the examples, of which only the class is used.
      batch: B.
      num_classes: K.
    """
    embedding = Conditioner({LABEL: OneHotEmbedder(num_classes)})(conditions or {})
    return jnp.zeros((batch, num_classes)) if embedding.vector is None else embedding.vector
