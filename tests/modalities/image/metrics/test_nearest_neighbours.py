"""Nearest training images: copies are found, and new images are not taken for copies."""

import numpy as np
from PIL import Image

from aigc_jax.modalities.image.metrics import nearest_neighbours
from aigc_jax.modalities.image.metrics.nearest_neighbours import Space


def spaces(train, held_out):
    return {
        "pixels": Space.of(nearest_neighbours.pixels(train), nearest_neighbours.pixels(held_out))
    }


def random_images(n, seed, shape=(8, 8, 1)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


def test_copying_by_hand():
    found = nearest_neighbours.copying(np.array([1.0, 3.0, 3.0]), np.array([2.0, 3.0]))
    # 1 is nearer than both; 3 is farther than 2 and as far as 3, twice.
    np.testing.assert_allclose(found.value, (2 + 0.5 + 0.5) / 6)
    assert 0 <= found.low < found.value < found.high <= 1


def test_its_interval_is_its_spread():
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found.append(nearest_neighbours.copying(rng.normal(0, 1, 80), rng.normal(0.5, 2, 50)))
    values, lows, highs = np.array(found).T
    np.testing.assert_allclose((highs - lows).mean() / 2 / 1.96, values.std(), rtol=0.1)
    assert 0.91 < np.mean((lows < values.mean()) & (values.mean() < highs)) < 0.98


def test_copies_are_found_and_new_images_are_not():
    train, held_out = random_images(200, 0), random_images(60, 1)
    known = spaces(train, held_out)

    def judged(images):
        nearest = {k: s.nearest(nearest_neighbours.pixels(images)) for k, s in known.items()}
        return nearest_neighbours.metrics(nearest, known), nearest

    found, nearest = judged(train[50:90])
    assert found == dict(copying_pixels=1.0, copying_pixels_low=1.0, copying_pixels_high=1.0)
    np.testing.assert_array_equal(nearest["pixels"][0][:, 0], np.arange(50, 90))
    np.testing.assert_array_equal(nearest["pixels"][1][:, 0], 0)
    fresh, _ = judged(random_images(60, 2))
    assert fresh["copying_pixels_low"] < 0.5 < fresh["copying_pixels_high"]
    # A tenth of copies among new images, with a little noise, moves the number and can be seen.
    noisy = np.clip(train[:30] + np.random.default_rng(3).normal(0, 3, (30, 8, 8, 1)), 0, 255)
    some, nearest = judged(np.concatenate([random_images(270, 4), noisy.astype(np.uint8)]))
    assert some["copying_pixels"] > 0.53
    closest = np.argsort(nearest["pixels"][1][:, 0])[:30]
    np.testing.assert_array_equal(np.sort(closest), np.arange(270, 300))


def test_large_images_are_compared_by_squares_of_pixels():
    for shape, width in (((8, 9, 3), 216), ((70, 50, 1), 23 * 16), ((3, 100, 1), 300)):
        images = random_images(2, 0, shape)
        assert nearest_neighbours.pixels(images).shape == (2, width)
    image = np.zeros((1, 64, 64, 1), np.uint8)
    image[:, :2, :2] = [[[0], [255]], [[255], [0]]]
    np.testing.assert_allclose(nearest_neighbours.pixels(image)[0, :2], [0.5, 0])


def test_the_picture_shows_the_nearest_first(tmp_path):
    for shape in ((8, 8, 1), (5, 11, 3)):
        train, images = random_images(40, 0, shape), random_images(20, 1, shape)
        images[7] = train[3]
        known = spaces(train, random_images(20, 2, shape))
        nearest = {"pixels": known["pixels"].nearest(nearest_neighbours.pixels(images))}
        path = str(tmp_path / "samples" / "neighbours.png")
        nearest_neighbours.save(nearest_neighbours.picture(images, train, nearest), path)
        sheet = np.asarray(Image.open(path))
        scale = 64 // max(shape[:2])
        height, width = shape[0] * scale, shape[1] * scale
        expected = np.broadcast_to(train[3], (*shape[:2], 3)).repeat(scale, 0).repeat(scale, 1)
        second = 6 + 12 + max(width, 48) + 6
        np.testing.assert_array_equal(sheet[20 : 20 + height, 6 : 6 + width], expected)
        np.testing.assert_array_equal(sheet[20 : 20 + height, second : second + width], expected)


def test_few_images_make_a_picture_too():
    train, images = random_images(2, 0), random_images(1, 1)
    nearest = {"pixels": spaces(train, train)["pixels"].nearest(nearest_neighbours.pixels(images))}
    assert nearest["pixels"][0].shape == (1, 2)
    assert nearest_neighbours.picture(images, train, nearest).size[1] > 64
