"""Random transformations of images through which gradients flow, each drawn from its example's key.

For critics that see few images (DiffAugment, Zhao et al. 2020; ADA, Karras et al. 2020) and for
models that are told what was done to an image (EDM, Karras et al. 2022, appendix F.2).
Shapes: B batch, H height, W width, C channels, A numbers that say what was done.
"""

import jax
import jax.numpy as jnp

from aigc_jax.ops.random import fold, normal, uniform

# Kind: how many of the A numbers it has. Moved first, then coloured, then covered.
KINDS = {
    "flip": 1,
    "rotate90": 2,
    "translate": 2,
    "scale": 1,
    "rotate": 2,
    "anisotropy": 2,
    "brightness": 1,
    "contrast": 1,
    "saturation": 1,
    "cutout": 3,
}
AFFINE = ("scale", "rotate", "anisotropy")
SHIFT = 0.125  # of a side, at most
LOG2_SCALE = 0.2  # the standard deviation of log₂ of a scale


def width(kinds: tuple[str, ...]) -> int:
    """A, the numbers that say what was done, for these kinds."""
    return sum(KINDS[kind] for kind in kinds)


def augment(
    x_BHWC: jax.Array,
    key_B: jax.Array,
    probability: jax.Array | float,
    kinds: tuple[str, ...],
) -> tuple[jax.Array, jax.Array]:
    """Each kind of transformation for itself with the given probability.

    The same keys give the same transformations, whatever the images and whatever else is in the
    batch; a kind's draws do not depend on the other kinds that are asked for.

    Args:
      x_BHWC: images in about [−1, 1].
      key_B: one random key per example.
      probability: scalar or (B,), of each kind; may be traced.
      kinds: some of `KINDS`. flip: left and right, in half of the cases. rotate90: by 0, 90, 180 or
        270°; images that are not square by 0 or 180°. translate: by whole pixels, up to an eighth
        of the side. scale and anisotropy: by 2^n, n ~ N(0, 0.2²), along both axes or out along one
        and in along the other, at any angle. rotate: by any angle. brightness: + U(−½, ½).
        contrast: · U(½, 3⁄2) about the image's mean. saturation: · U(0, 2) about the pixel's mean,
        colour images only. cutout: a rectangle of half the sides becomes 0.

    Returns:
      The images, mirrored at their borders where something from outside comes in, and (B, A)
      float32: of each kind, in the order of `KINDS`, what was done. Zeros: nothing. flip: 1.
      rotate90, rotate: cos − 1 and sin of the angle. translate: shares of SHIFT, down and right.
      scale: n / 0.2. anisotropy: n / 0.2 · cos and sin of twice the angle. brightness: 2 × what was
      added. contrast: 2 · (factor − 1). saturation: factor − 1. cutout: 1, and its centre's
      place, −1…1, down and right.
    """
    b, h, w, c = x_BHWC.shape
    probability_B = jnp.broadcast_to(probability, (b,))
    x, label, matrix = x_BHWC, {}, jnp.broadcast_to(jnp.eye(2), (b, 2, 2))
    for index, kind in enumerate(KINDS):
        if kind not in kinds:
            continue
        own_B = fold(key_B, index)
        on_B = (uniform(fold(own_B, 0)) < probability_B).astype(jnp.float32)
        u_B2 = uniform(fold(own_B, 1), (2,))
        if kind == "flip":
            on_B *= (u_B2[:, 0] < 0.5).astype(jnp.float32)
            x, label[kind] = flip(x, on_B > 0), on_B[:, None]
        elif kind == "rotate90":
            turns_B = jnp.int32(u_B2[:, 0] * 4) if h == w else 2 * jnp.int32(u_B2[:, 0] * 2)
            turns_B *= on_B.astype(jnp.int32)
            x = rotate90(x, turns_B)
            label[kind] = jnp.array([[0.0, 0], [-1, 1], [-2, 0], [-1, -1]])[turns_B]
        elif kind == "translate":
            limit = jnp.array([max(round(h * SHIFT), 1), max(round(w * SHIFT), 1)])
            shift_B2 = jnp.floor(u_B2 * (2 * limit + 1)).astype(jnp.int32) - limit
            shift_B2 *= on_B.astype(jnp.int32)[:, None]
            x, label[kind] = translate(x, shift_B2), shift_B2 / limit
        elif kind in AFFINE:
            n_B = normal(fold(own_B, 2), ()) * on_B
            step, label[kind] = _affine_step(kind, n_B, 2 * jnp.pi * u_B2[:, 0] * on_B)
            matrix = matrix @ step
        elif kind == "brightness":
            label[kind] = (2 * u_B2[:, :1] - 1) * on_B[:, None]
        elif kind in ("contrast", "saturation"):
            colours = kind == "contrast" or c > 1
            label[kind] = (2 * u_B2[:, :1] - 1) * on_B[:, None] * colours
        else:
            label[kind] = jnp.concatenate([jnp.ones((b, 1)), 2 * u_B2 - 1], 1) * on_B[:, None]
    if set(kinds) & set(AFFINE):
        x = affine(x, matrix)
    if "brightness" in label:
        x = x + label["brightness"][:, :, None, None] / 2
    if "contrast" in label:
        mean = x.mean((1, 2, 3), keepdims=True)
        x = x + label["contrast"][:, :, None, None] / 2 * (x - mean)
    if "saturation" in label:
        x = x + label["saturation"][:, :, None, None] * (x - x.mean(3, keepdims=True))
    if "cutout" in label:
        x = cut_out(x, label["cutout"][:, 0] > 0, label["cutout"][:, 1:])
    found = [label[kind] for kind in KINDS if kind in label]
    return x, jnp.concatenate([jnp.zeros((b, 0)), *found], 1).astype(jnp.float32)


def flip(x_BHWC: jax.Array, on_B: jax.Array) -> jax.Array:
    """Left and right swapped where `on_B`."""
    return jnp.where(on_B[:, None, None, None], x_BHWC[:, :, ::-1], x_BHWC)


def rotate90(x_BHWC: jax.Array, turns_B: jax.Array) -> jax.Array:
    """Turned `turns_B` times by 90° anticlockwise; 0 or 2 times if the images are not square."""
    turned = x_BHWC
    for turns in (1, 2, 3) if x_BHWC.shape[1] == x_BHWC.shape[2] else (2,):
        on = (turns_B == turns)[:, None, None, None]
        turned = jnp.where(on, jnp.rot90(x_BHWC, turns, (1, 2)), turned)
    return turned


def translate(x_BHWC: jax.Array, shift_B2: jax.Array) -> jax.Array:
    """Moved by whole pixels, down and right; mirrored at the borders."""
    for axis in (1, 2):
        size = x_BHWC.shape[axis]
        source_BN = mirror(jnp.arange(size) - shift_B2[:, axis - 1, None], size)
        # A product with a permutation, not a gather: the gradient of a gather is slow on a CPU.
        pick_BNM = jax.nn.one_hot(source_BN, size, dtype=x_BHWC.dtype)
        sum_over = "bnm,bmwc->bnwc" if axis == 1 else "bnm,bhmc->bhnc"
        x_BHWC = jnp.einsum(sum_over, pick_BNM, x_BHWC, precision="highest")
    return x_BHWC


def affine(x_BHWC: jax.Array, matrix_B22: jax.Array) -> jax.Array:
    """Transformed about the centre by (down, right) ↦ matrix · (down, right), bilinearly.

    Args:
      x_BHWC: images; mirrored at the borders.
      matrix_B22: invertible. The identity leaves an image as it is, to the bit.
    """
    _, h, w, _ = x_BHWC.shape
    centre = jnp.array([(h - 1) / 2, (w - 1) / 2])
    down, right = jnp.meshgrid(jnp.arange(h) - centre[0], jnp.arange(w) - centre[1], indexing="ij")
    m = _inverse(matrix_B22)[:, :, :, None, None]
    # Sums of two terms, not a matrix product, which some devices round to bfloat16.
    y = mirror(m[:, 0, 0] * down + m[:, 0, 1] * right + centre[0], h)
    x = mirror(m[:, 1, 0] * down + m[:, 1, 1] * right + centre[1], w)
    top, left = jnp.floor(y), jnp.floor(x)
    part_y, part_x = (y - top)[..., None], (x - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    below, beside = jnp.minimum(top + 1, h - 1), jnp.minimum(left + 1, w - 1)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return jax.vmap(lambda image, r, c: image[r, c])(x_BHWC, row, column)

    upper = at(top, left) * (1 - part_x) + at(top, beside) * part_x
    lower = at(below, left) * (1 - part_x) + at(below, beside) * part_x
    return (upper * (1 - part_y) + lower * part_y).astype(x_BHWC.dtype)


def cut_out(x_BHWC: jax.Array, on_B: jax.Array, centre_B2: jax.Array) -> jax.Array:
    """0 in a rectangle of half the sides where `on_B`; its centre is −1…1 of the image."""
    inside = on_B[:, None, None]
    for axis, lift in ((1, (slice(None), None)), (2, (None, slice(None)))):
        size = x_BHWC.shape[axis]
        middle = (centre_B2[:, axis - 1] + 1) / 2 * size
        near = jnp.abs(jnp.arange(size) + 0.5 - middle[:, None]) < size / 4
        inside = inside & near[:, *lift]
    return jnp.where(inside[..., None], 0, x_BHWC)


def mirror(place: jax.Array, size: int) -> jax.Array:
    """Places outside 0…size − 1 reflected at the first and the last pixel."""
    period = max(2 * (size - 1), 1)
    place = place % period
    return jnp.minimum(place, period - place) if size > 1 else jnp.zeros_like(place)


def _affine_step(kind: str, n_B: jax.Array, angle_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The matrix (B, 2, 2) of a kind and what it says."""
    cos, sin = jnp.cos(angle_B), jnp.sin(angle_B)
    turn = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
    if kind == "rotate":
        return turn, jnp.stack([cos - 1, sin], -1)
    factor = 2 ** (LOG2_SCALE * n_B)
    if kind == "scale":
        return factor[:, None, None] * jnp.eye(2), n_B[:, None]
    stretch = jnp.stack([factor, 1 / factor], -1)[:, :, None] * jnp.eye(2)
    product = jnp.einsum("bij,bjk,blk->bil", turn, stretch, turn, precision="highest")
    label = jnp.stack([n_B * jnp.cos(2 * angle_B), n_B * jnp.sin(2 * angle_B)], -1)
    # To the bit the identity where nothing is done, which a product of rotations is not.
    return jnp.where((n_B == 0)[:, None, None], jnp.eye(2), product), label


def _inverse(matrix_B22: jax.Array) -> jax.Array:
    a, b, c, d = (matrix_B22[:, i, j] for i in (0, 1) for j in (0, 1))
    inverse = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2)
    return inverse / (a * d - b * c)[:, None, None]
