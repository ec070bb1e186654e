"""Differentiable random augmentation, drawn from each example's key.

For critics that see few images (DiffAugment, Zhao et al. 2020; ADA, Karras et al. 2020) and for
models that are conditioned on the augmentation (EDM, Karras et al. 2022, appendix F.2).
Shapes: B batch, … spatial axes, C channels; D number of spatial axes; A size of the augmentation
label, the numbers that describe the applied transformations.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.registry import Registry
from aigc_jax.ops import transforms
from aigc_jax.ops.per_example import expand_like, mean_per_example
from aigc_jax.ops.random import fold, normal, uniform

MAX_SHIFT = 0.125  # fraction of a side
LOG2_SCALE = 0.2  # standard deviation of log₂ of a scale


@dataclasses.dataclass(frozen=True)
class Draws:
    """Random numbers of one kind of augmentation.

    Attributes:
      on_B: float, 1 where the augmentation is applied, otherwise 0.
      uniform_BD: in [0, 1), one per spatial axis, but at least two.
      key_B: keys for further draws; `fold` them with 2 or more.
    """

    on_B: jax.Array
    uniform_BD: jax.Array
    key_B: jax.Array


class Augmentation:
    """A kind of augmentation: subclass it and register an instance in `AUGMENTATIONS`.

    Attributes:
      spatial_dims: number of spatial axes that it supports; 0 for any.
    """

    spatial_dims = 0

    def width(self, dims: int) -> int:
        """Returns A, the size of the label for examples with `dims` spatial axes."""
        return 1

    def apply(self, x: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """Returns augmented examples and labels (B, A), zeros where not applied."""
        raise NotImplementedError


class Flip(Augmentation):
    """Reverses the last spatial axis (left and right) with probability ½. Label: 1."""

    def apply(self, x, draws):
        on_B = draws.on_B * (draws.uniform_BD[:, 0] < 0.5).astype(jnp.float32)
        return transforms.flip(x, on_B > 0), on_B[:, None]


class Rotate90(Augmentation):
    """Rotates by 0, 90, 180 or 270°, or by 0 or 180° if not square. Label: cos − 1, sin."""

    spatial_dims = 2

    def width(self, dims):
        return 2

    def apply(self, x, draws):
        u_B, square = draws.uniform_BD[:, 0], x.shape[1] == x.shape[2]
        turns_B = jnp.int32(u_B * 4) if square else 2 * jnp.int32(u_B * 2)
        turns_B *= draws.on_B.astype(jnp.int32)
        label = jnp.array([[0.0, 0], [-1, 1], [-2, 0], [-1, -1]])[turns_B]
        return transforms.rotate90(x, turns_B), label


class Translate(Augmentation):
    """Shifts by integer pixels, at most an eighth of each side. Label: shift / maximum per axis."""

    def width(self, dims):
        return dims

    def apply(self, x, draws):
        dims = x.ndim - 2
        limit_D = jnp.array([max(round(n * MAX_SHIFT), 1) for n in x.shape[1:-1]])
        u_BD = draws.uniform_BD[:, :dims]
        shift_BD = jnp.floor(u_BD * (2 * limit_D + 1)).astype(jnp.int32) - limit_D
        shift_BD *= draws.on_B.astype(jnp.int32)[:, None]
        return transforms.translate(x, shift_BD), shift_BD / limit_D


class Affine(Augmentation):
    """Linear map of the image plane; consecutive maps are composed before resampling."""

    spatial_dims = 2

    def apply(self, x, draws):
        matrix_B22, label = self.matrix(draws)
        return transforms.affine(x, matrix_B22), label

    def matrix(self, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """Returns the map of (down, right), (B, 2, 2), and its label (B, A)."""
        normal_B = normal(fold(draws.key_B, 2), ()) * draws.on_B
        return self._map(normal_B, 2 * jnp.pi * draws.uniform_BD[:, 0] * draws.on_B)

    def _map(self, normal_B: jax.Array, angle_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError


class Scale(Affine):
    """Scales by 2^n along both axes, n ~ N(0, 0.2²). Label: n / 0.2."""

    def _map(self, normal_B, angle_B):
        factor_B = 2 ** (LOG2_SCALE * normal_B)
        return factor_B[:, None, None] * jnp.eye(2), normal_B[:, None]


class Rotate(Affine):
    """Rotates by a uniform angle. Label: cos − 1, sin."""

    def width(self, dims):
        return 2

    def _map(self, normal_B, angle_B):
        label = jnp.stack([jnp.cos(angle_B) - 1, jnp.sin(angle_B)], -1)
        return _rotation(angle_B), label


class Anisotropy(Affine):
    """Scales by 2^n along one axis and 2^−n along the other, at a uniform angle.

    Label: n / 0.2 · cos and sin of twice the angle.
    """

    def width(self, dims):
        return 2

    def _map(self, normal_B, angle_B):
        turn, factor_B = _rotation(angle_B), 2 ** (LOG2_SCALE * normal_B)
        stretch = jnp.stack([factor_B, 1 / factor_B], -1)[:, :, None] * jnp.eye(2)
        product = jnp.einsum("bij,bjk,blk->bil", turn, stretch, turn, precision="highest")
        ends = jnp.cos(2 * angle_B), jnp.sin(2 * angle_B)
        label = jnp.stack([normal_B * end_B for end_B in ends], -1)
        # Exactly the identity where not applied, which a product of rotations is not.
        return jnp.where((normal_B == 0)[:, None, None], jnp.eye(2), product), label


def _rotation(angle_B: jax.Array) -> jax.Array:
    cos, sin = jnp.cos(angle_B), jnp.sin(angle_B)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _signed(draws: Draws) -> jax.Array:
    """Returns (B, 1) uniform in [−1, 1)."""
    return (2 * draws.uniform_BD[:, :1] - 1) * draws.on_B[:, None]


class Brightness(Augmentation):
    """Adds U(−½, ½). Label: twice the addend."""

    def apply(self, x, draws):
        label = _signed(draws)
        return x + expand_like(label, x) / 2, label


class Contrast(Augmentation):
    """Scales by U(½, 3⁄2) about the example's mean. Label: 2 · (factor − 1)."""

    def apply(self, x, draws):
        label, mean = _signed(draws), expand_like(mean_per_example(x), x)
        return x + expand_like(label, x) / 2 * (x - mean), label


class Saturation(Augmentation):
    """Scales by U(0, 2) about the pixel's mean over several channels. Label: factor − 1."""

    def apply(self, x, draws):
        label = _signed(draws) * (x.shape[-1] > 1)
        return x + expand_like(label, x) * (x - x.mean(-1, keepdims=True)), label


class Cutout(Augmentation):
    """Sets a box of half the sides to 0. Label: 1 and its centre, −1…1 along each axis."""

    def width(self, dims):
        return 1 + dims

    def apply(self, x, draws):
        dims = x.ndim - 2
        ones = jnp.ones((len(x), 1))
        label = jnp.concatenate([ones, 2 * draws.uniform_BD[:, :dims] - 1], 1)
        label *= draws.on_B[:, None]
        return transforms.cut_out(x, label[:, 0] > 0, label[:, 1:]), label


# Applied in this order: geometry, colours, cutout.
AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation",
    "objective.augment_kinds",
    {
        "flip": Flip(),
        "rotate90": Rotate90(),
        "translate": Translate(),
        "scale": Scale(),
        "rotate": Rotate(),
        "anisotropy": Anisotropy(),
        "brightness": Brightness(),
        "contrast": Contrast(),
        "saturation": Saturation(),
        "cutout": Cutout(),
    },
)
# Folded into the keys, so that the draws of a kind do not depend on the other kinds.
KEY_NUMBERS = {name: index for index, name in enumerate(AUGMENTATIONS)}


def in_order(kinds: Sequence[str]) -> list[str]:
    """Returns the kinds in order of application: built-in ones, then others as passed."""
    return [*(k for k in KEY_NUMBERS if k in kinds), *(k for k in kinds if k not in KEY_NUMBERS)]


def width(kinds: Sequence[str], dims: int = 2) -> int:
    """Returns A, the size of the labels of these kinds for examples with `dims` spatial axes."""
    return sum(AUGMENTATIONS[kind].width(dims) for kind in in_order(kinds))


def check_dims(kinds: Sequence[str], dims: int, field: str) -> None:
    """Raises UserError for a kind that does not support examples with `dims` spatial axes."""
    wrong = [kind for kind in kinds if AUGMENTATIONS[kind].spatial_dims not in (0, dims)]
    if wrong:
        raise UserError(
            f"{field} has {', '.join(wrong)}, but the data have {dims} spatial axes: remove the"
            " kinds that are for images only"
        )


def augment(
    x: jax.Array, key_B: jax.Array, probability: jax.Array | float, kinds: Sequence[str]
) -> tuple[jax.Array, jax.Array]:
    """Applies each kind of augmentation independently with the given probability.

    The augmentation of an example depends on its key only, not on the rest of the batch; the draws
    of a kind do not depend on the other kinds.

    Args:
      x: examples (B, …, C) in about [−1, 1].
      key_B: one random key per example.
      probability: probability of each kind, scalar or (B,); may be traced.
      kinds: names in `AUGMENTATIONS`.

    Returns:
      The augmented examples, reflected at their borders where pixels from outside move in; and
      labels (B, A) float32 of the kinds in the order of `in_order`, zeros where not applied.
    """
    batch, dims = x.shape[0], x.ndim - 2
    probability_B = jnp.broadcast_to(probability, (batch,))
    labels, composed = [jnp.zeros((batch, 0))], None
    for kind in in_order(kinds):
        augmentation = AUGMENTATIONS[kind]
        own_B = fold(key_B, KEY_NUMBERS.get(kind, zlib.crc32(kind.encode()) & 0x7FFFFFFF))
        on_B = (uniform(fold(own_B, 0)) < probability_B).astype(jnp.float32)
        draws = Draws(on_B, uniform(fold(own_B, 1), (max(dims, 2),)), own_B)
        if isinstance(augmentation, Affine):  # consecutive ones are resampled once
            matrix, label = augmentation.matrix(draws)
            composed = matrix if composed is None else composed @ matrix
        else:
            if composed is not None:
                x, composed = transforms.affine(x, composed), None
            x, label = augmentation.apply(x, draws)
        labels.append(label)
    x = x if composed is None else transforms.affine(x, composed)
    return x, jnp.concatenate(labels, 1).astype(jnp.float32)
