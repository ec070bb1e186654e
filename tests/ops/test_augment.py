"""Augmentation: every kind does what it says, exactly, example by example, and gradients flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.ops import transforms
from aigc_jax.ops.augment import AUGMENTATIONS, Augmentation, augment, check_dims, width

KEY_B = jax.random.split(jax.random.key(0), 16)
X = jax.random.uniform(jax.random.key(1), (16, 6, 6, 3), minval=-1)
KINDS = tuple(AUGMENTATIONS)
GEOMETRY = ("flip", "rotate90", "translate", "scale", "rotate", "anisotropy")


def run(kinds, x=X, p=1.0, key_B=KEY_B):
    return jax.jit(augment, static_argnums=3)(x, key_B[: len(x)], p, kinds)


def test_nothing_is_done_with_probability_zero():
    x, label = run(KINDS, p=0.0)
    np.testing.assert_array_equal(x, X)
    assert label.shape == (16, width(KINDS)) and not label.any()
    assert run(())[1].shape == (16, 0)


def test_whole_pixels_move_as_numpy_moves_them():
    flipped, label = run(("flip",))
    turned, turns = run(("rotate90",))
    moved, shift = run(("translate",))
    assert 0 < label.sum() < 16 and len(np.unique(np.asarray(turns), axis=0)) == 4
    flipped, turned, moved = map(np.asarray, (flipped, turned, moved))
    for i, x in enumerate(np.asarray(X)):
        np.testing.assert_array_equal(flipped[i], x[:, ::-1] if label[i] else x)
        k = int(np.round(np.arctan2(turns[i, 1], turns[i, 0] + 1) / (np.pi / 2))) % 4
        np.testing.assert_array_equal(turned[i], np.rot90(x, k))
        down, right = np.round(np.asarray(shift[i])).astype(int)  # an eighth of 6 is 1
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="reflect")
        expected = padded[1 - down : 7 - down, 1 - right : 7 - right]
        np.testing.assert_allclose(moved[i], expected, rtol=1e-6)


@pytest.mark.slow
def test_affine_by_known_results():
    """A quarter turn is rot90; the identity is exact; twice as large and back is the middle."""
    quarter = jnp.broadcast_to(jnp.array([[0.0, -1], [1, 0]]), (16, 2, 2))
    np.testing.assert_allclose(transforms.affine(X, quarter), jnp.rot90(X, 1, (1, 2)), atol=1e-6)
    eye = jnp.broadcast_to(jnp.eye(2), (16, 2, 2))
    np.testing.assert_array_equal(transforms.affine(X, eye), X)
    odd = X[:, :5, :5]
    large = transforms.affine(odd, 2 * eye)
    np.testing.assert_allclose(large[:, ::2, ::2], odd[:, 1:4, 1:4], atol=1e-6)
    np.testing.assert_allclose(large[:, 1, 0], (odd[:, 1, 1] + odd[:, 2, 1]) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", ["scale", "rotate", "anisotropy"])
def test_what_is_said_undoes_a_smooth_image(kind):
    """The numbers tell the matrix: undone by it, the middle of a smooth image is back."""
    place = jnp.linspace(-1, 1, 33)
    smooth = jnp.stack([0.3 * place[:, None] + 0.5 * place, place[:, None] * 0.4 - place], -1)
    x, label = run((kind,), x=jnp.broadcast_to(smooth, (16, 33, 33, 2)))
    a, b = label[:, 0], label[:, -1]
    if kind == "rotate":
        m = jnp.stack([jnp.stack([a + 1, -b], -1), jnp.stack([b, a + 1], -1)], -2)
    else:
        n = jnp.hypot(a, b) if kind == "anisotropy" else a
        half = jnp.arctan2(b, a) / 2 if kind == "anisotropy" else 0 * a
        cos, sin = jnp.cos(half), jnp.sin(half)
        turn = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
        other = -n if kind == "anisotropy" else n
        scale = 2 ** (0.2 * jnp.stack([n, other], -1))
        m = turn @ (scale[:, :, None] * jnp.swapaxes(turn, 1, 2))
    assert float(jnp.abs(m - jnp.eye(2)).max()) > 0.1
    back = transforms.affine(x, jnp.linalg.inv(m))
    middle = slice(13, 20)
    np.testing.assert_allclose(back[:, middle, middle], jnp.broadcast_to(
        smooth[middle, middle], (16, 7, 7, 2)), atol=2e-5)  # fmt: skip


def test_colours_by_what_is_said():
    x, label = run(("brightness",))
    np.testing.assert_allclose(x - X, label[:, :, None, None] / 2 + 0 * X, atol=1e-6)
    x, label = run(("contrast",))
    np.testing.assert_allclose(x.mean((1, 2, 3)), X.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(x.std((1, 2, 3)) / X.std((1, 2, 3)), 1 + label[:, 0] / 2, rtol=1e-4)
    x, label = run(("saturation",))
    np.testing.assert_allclose(x.mean(3), X.mean(3), atol=1e-6)
    spread = lambda x: (x - x.mean(3, keepdims=True)).std((1, 2, 3))  # noqa: E731
    np.testing.assert_allclose(spread(x) / spread(X), 1 + label[:, 0], rtol=1e-4)
    grey, label = run(("saturation",), x=X[..., :1])
    np.testing.assert_array_equal(grey, X[..., :1])
    assert not label.any()


def test_cutout_covers_a_rectangle():
    x, label = run(("cutout",), x=jnp.ones((16, 8, 12, 1)))
    assert (label[:, 0] == 1).all()
    covered = 1 - x[..., 0]
    for i in range(16):
        rows, columns = (np.flatnonzero(covered[i].max(axis)) for axis in (1, 0))
        assert covered[i].sum() == len(rows) * len(columns) > 0  # a rectangle, cut by the border
        assert len(rows) <= 4 and len(columns) <= 6
    centre = transforms.cut_out(jnp.ones((1, 8, 8, 1)), jnp.array([True]), jnp.zeros((1, 2)))
    assert centre.sum() == 48 and centre[0, 2:6, 2:6].sum() == 0


def test_an_example_does_not_depend_on_its_neighbours():
    kinds = KINDS
    whole, label = run(kinds, p=0.5)
    order = np.roll(np.arange(16), 5)
    others = jnp.where((order == 5)[:, None, None, None], X[order], 0.3)
    again, again_label = run(kinds, x=others, p=0.5, key_B=KEY_B[order])
    np.testing.assert_array_equal(whole[5], again[10])
    np.testing.assert_array_equal(label[order], again_label)
    # Nor on the kinds beside it.
    np.testing.assert_array_equal(run(("scale",), p=0.5)[1], label[:, 5:6])


def test_probability_is_the_share_of_examples():
    keys = jax.random.split(jax.random.key(3), 2000)
    x, label = run(("brightness",), x=jnp.zeros((2000, 1, 1, 1)), p=0.3, key_B=keys)
    assert abs(float((label != 0).mean()) - 0.3) < 0.04  # 4 standard deviations
    assert float(jnp.abs(x).max()) <= 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow(kind):
    """Moving keeps the sum over a whole image's gradients; colours scale it by what they say."""
    grad = jax.grad(lambda x: (augment(x, KEY_B, 1.0, (kind,))[0] ** 2).sum())(X)
    assert np.isfinite(grad).all() and (np.abs(grad).sum((1, 2, 3)) > 0).all()
    if kind in ("flip", "rotate90"):
        np.testing.assert_allclose(grad, 2 * X, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 7, 5, 1), (2, 1, 1, 3)])
def test_any_shape(shape):
    x, label = run(GEOMETRY, x=jnp.ones(shape))
    assert x.shape == shape and np.isfinite(label).all()
    np.testing.assert_allclose(x, 1, rtol=1e-5)  # what comes in from outside is like the inside


ANY_RANK = tuple(kind for kind in KINDS if not AUGMENTATIONS[kind].spatial_dims)


@pytest.mark.parametrize("shape", [(12, 2), (6, 4, 8, 3)])
def test_other_numbers_of_spatial_axes(shape):
    """Flips, translations, colours and cutout of sound and of video, as numpy moves them."""
    dims = len(shape) - 1
    x = jax.random.uniform(jax.random.key(1), (16, *shape), minval=-1)
    out, label = run(ANY_RANK, x=x, p=0.5)
    assert out.shape == x.shape and label.shape == (16, width(ANY_RANK, dims))
    moved, shift = run(("translate",), x=x)
    flipped, flips = run(("flip",), x=x)
    limits = [max(round(n / 8), 1) for n in shape[:-1]]
    for i in range(16):
        padded = np.pad(x[i], [*((n, n) for n in limits), (0, 0)], mode="reflect")
        steps = np.round(np.asarray(shift[i]) * limits).astype(int)
        window = tuple(
            slice(limit - step, limit - step + n)
            for limit, step, n in zip(limits, steps, shape[:-1], strict=True)
        )
        np.testing.assert_allclose(moved[i], padded[window], rtol=1e-6)
        np.testing.assert_array_equal(flipped[i], x[i][..., ::-1, :] if flips[i] else x[i])
    assert len(np.unique(np.asarray(shift), axis=0)) > 1 and 0 < flips.sum() < 16
    covered, _ = run(("cutout",), x=jnp.ones((16, *shape)))
    assert ((covered == 0).any(tuple(range(1, dims + 2)))).all() and covered.any()


def test_kinds_for_images_are_refused_elsewhere():
    with pytest.raises(UserError, match=r"augment_kinds.*rotate90.*1 spatial axes"):
        check_dims(("flip", "rotate90"), 1, "objective.augment_kinds")
    check_dims(KINDS, 2, "objective.augment_kinds")


class Invert(Augmentation):
    def apply(self, x, draws):
        return jnp.where(draws.on_B[:, None, None, None] > 0, -x, x), draws.on_B[:, None]


INVERT = Invert()


def test_an_augmentation_of_ones_own():
    name = f"{__name__}:INVERT"
    try:
        x, label = run((name,), p=0.5)
        np.testing.assert_array_equal(x, np.where(label[:, :, None, None] > 0, -X, X))
        assert 0 < label.sum() < 16
    finally:
        AUGMENTATIONS._items.pop(name, None)
