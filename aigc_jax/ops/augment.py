"""Random augmentation through which gradients flow, each drawn from its example's key.

For critics that see few images (DiffAugment, Zhao et al. 2020; ADA, Karras et al. 2020) and for
models that are conditioned on the augmentation (EDM, Karras et al. 2022, appendix F.2).
Shapes: B batch, … spatial axes, C channels; D spatial axes; A numbers that describe what was done.
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

MAX_SHIFT = 0.125  # of a side
LOG2_SCALE = 0.2  # the standard deviation of log₂ of a scale


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of one kind of augmentation.

    Attributes:
      on_B: float, 1 where it is applied, otherwise 0.
      uniform_BD: in [0, 1), one per spatial axis, but at least two.
      key_B: keys for further draws; `fold` them with 2 or more.
    """

    on_B: jax.Array
    uniform_BD: jax.Array
    key_B: jax.Array


class Augmentation:
    """A kind of augmentation: subclass it and register an instance in `AUGMENTATIONS`.

    Attributes:
      spatial_dims: the number of spatial axes that it is for; 0: any.
    """

    spatial_dims = 0

    def width(self, dims: int) -> int:
        """A: how many numbers describe what was done to an example with `dims` spatial axes."""
        return 1

    def apply(self, x: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """The augmented examples and (B, A) what was done; zeros: nothing."""
        raise NotImplementedError


class Flip(Augmentation):
    """Left and right swapped (the last spatial axis reversed) in half of the cases: 1."""

    def apply(self, x, draws):
        on_B = draws.on_B * (draws.uniform_BD[:, 0] < 0.5).astype(jnp.float32)
        return transforms.flip(x, on_B > 0), on_B[:, None]


class Rotate90(Augmentation):
    """By 0, 90, 180 or 270°, images that are not square by 0 or 180°: cos − 1 and sin."""

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
    """By whole pixels, up to an eighth of each side: shares of that, down and right for images."""

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
    """A linear map of the image plane; neighbouring ones are composed before pixels move."""

    spatial_dims = 2

    def apply(self, x, draws):
        matrix_B22, label = self.matrix(draws)
        return transforms.affine(x, matrix_B22), label

    def matrix(self, draws: Draws) -> tuple[jax.Array, jax.Array]:
        """The map (B, 2, 2) of (down, right) and (B, A) what it is."""
        normal_B = normal(fold(draws.key_B, 2), ()) * draws.on_B
        return self._map(normal_B, 2 * jnp.pi * draws.uniform_BD[:, 0] * draws.on_B)

    def _map(self, normal_B: jax.Array, angle_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError


class Scale(Affine):
    """By 2^n along both axes, n ~ N(0, 0.2²): n / 0.2."""

    def _map(self, normal_B, angle_B):
        factor_B = 2 ** (LOG2_SCALE * normal_B)
        return factor_B[:, None, None] * jnp.eye(2), normal_B[:, None]


class Rotate(Affine):
    """By any angle: cos − 1 and sin."""

    def width(self, dims):
        return 2

    def _map(self, normal_B, angle_B):
        label = jnp.stack([jnp.cos(angle_B) - 1, jnp.sin(angle_B)], -1)
        return _rotation(angle_B), label


class Anisotropy(Affine):
    """By 2^n along one axis and 2^−n along the other, at any angle.

    What was done: n / 0.2 · cos and sin of twice the angle.
    """

    def width(self, dims):
        return 2

    def _map(self, normal_B, angle_B):
        turn, factor_B = _rotation(angle_B), 2 ** (LOG2_SCALE * normal_B)
        stretch = jnp.stack([factor_B, 1 / factor_B], -1)[:, :, None] * jnp.eye(2)
        product = jnp.einsum("bij,bjk,blk->bil", turn, stretch, turn, precision="highest")
        ends = jnp.cos(2 * angle_B), jnp.sin(2 * angle_B)
        label = jnp.stack([normal_B * end_B for end_B in ends], -1)
        # To the bit the identity where nothing is done, which a product of rotations is not.
        return jnp.where((normal_B == 0)[:, None, None], jnp.eye(2), product), label


def _rotation(angle_B: jax.Array) -> jax.Array:
    cos, sin = jnp.cos(angle_B), jnp.sin(angle_B)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _signed(draws: Draws) -> jax.Array:
    """(B, 1) uniform in [−1, 1)."""
    return (2 * draws.uniform_BD[:, :1] - 1) * draws.on_B[:, None]


class Brightness(Augmentation):
    """+ U(−½, ½): twice what was added."""

    def apply(self, x, draws):
        label = _signed(draws)
        return x + expand_like(label, x) / 2, label


class Contrast(Augmentation):
    """· U(½, 3⁄2) about the example's mean: 2 · (factor − 1)."""

    def apply(self, x, draws):
        label, mean = _signed(draws), expand_like(mean_per_example(x), x)
        return x + expand_like(label, x) / 2 * (x - mean), label


class Saturation(Augmentation):
    """· U(0, 2) about the pixel's mean over channels, if there are several: factor − 1."""

    def apply(self, x, draws):
        label = _signed(draws) * (x.shape[-1] > 1)
        return x + expand_like(label, x) * (x - x.mean(-1, keepdims=True)), label


class Cutout(Augmentation):
    """A box of half the sides becomes 0: 1, and its centre, −1…1 along each axis."""

    def width(self, dims):
        return 1 + dims

    def apply(self, x, draws):
        dims = x.ndim - 2
        ones = jnp.ones((len(x), 1))
        label = jnp.concatenate([ones, 2 * draws.uniform_BD[:, :dims] - 1], 1)
        label *= draws.on_B[:, None]
        return transforms.cut_out(x, label[:, 0] > 0, label[:, 1:]), label


# Applied in this order: geometry, then colours, then cutout.
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
# Folded into the keys, so that draws of a kind do not depend on the other kinds.
KEY_NUMBERS = {name: index for index, name in enumerate(AUGMENTATIONS)}


def in_order(kinds: Sequence[str]) -> list[str]:
    """The kinds in the order in which they are applied: the library's own, then others as given."""
    return [*(k for k in KEY_NUMBERS if k in kinds), *(k for k in kinds if k not in KEY_NUMBERS)]


def width(kinds: Sequence[str], dims: int = 2) -> int:
    """A: how many numbers describe what these kinds do to examples with `dims` spatial axes."""
    return sum(AUGMENTATIONS[kind].width(dims) for kind in in_order(kinds))


def check_dims(kinds: Sequence[str], dims: int, field: str) -> None:
    """Raises UserError for a kind that is not for examples with `dims` spatial axes."""
    wrong = [kind for kind in kinds if AUGMENTATIONS[kind].spatial_dims not in (0, dims)]
    if wrong:
        raise UserError(
            f"{field} has {', '.join(wrong)}, but the data have {dims} spatial axes: leave out what"
            " is only for images"
        )


def augment(
    x: jax.Array, key_B: jax.Array, probability: jax.Array | float, kinds: Sequence[str]
) -> tuple[jax.Array, jax.Array]:
    """Applies each kind of augmentation independently with the given probability.

    The same keys give the same augmentation, whatever the examples and whatever else is in the
    batch; a kind's draws do not depend on the other kinds.

    Args:
      x: examples (B, …, C) in about [−1, 1].
      key_B: one random key per example.
      probability: scalar or (B,), of each kind; may be traced.
      kinds: names in `AUGMENTATIONS`.

    Returns:
      The examples, mirrored at their borders where something from outside comes in, and (B, A)
      float32: of each kind, in the order of `in_order`, what was done; zeros: nothing.
    """
    batch, dims = x.shape[0], x.ndim - 2
    probability_B = jnp.broadcast_to(probability, (batch,))
    labels, composed = [jnp.zeros((batch, 0))], None
    for kind in in_order(kinds):
        augmentation = AUGMENTATIONS[kind]
        own_B = fold(key_B, KEY_NUMBERS.get(kind, zlib.crc32(kind.encode()) & 0x7FFFFFFF))
        on_B = (uniform(fold(own_B, 0)) < probability_B).astype(jnp.float32)
        draws = Draws(on_B, uniform(fold(own_B, 1), (max(dims, 2),)), own_B)
        if isinstance(augmentation, Affine):  # pixels move once for all of them
            matrix, label = augmentation.matrix(draws)
            composed = matrix if composed is None else composed @ matrix
        else:
            if composed is not None:
                x, composed = transforms.affine(x, composed), None
            x, label = augmentation.apply(x, draws)
        labels.append(label)
    x = x if composed is None else transforms.affine(x, composed)
    return x, jnp.concatenate(labels, 1).astype(jnp.float32)
