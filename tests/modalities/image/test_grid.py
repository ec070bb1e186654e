"""Image grids: every pixel, and files."""

import math
import os

import numpy as np
import pytest
from PIL import Image

from aigc_jax.modalities.image.grid import image_grid, save_images


def images(count, height=4, width=3, colours=1):
    rng = np.random.default_rng(count)
    return rng.integers(0, 250, (count, height, width, colours)).astype(np.uint8)


def cells(grid, array, columns, scale, gap):
    """The part of the grid in which each image must lie."""
    sheet = np.asarray(grid).reshape(grid.height, grid.width, -1)
    height, width = array.shape[1] * scale, array.shape[2] * scale
    for i in range(len(array)):
        top = gap + (i // columns) * (height + gap)
        left = gap + (i % columns) * (width + gap)
        yield sheet[top : top + height, left : left + width]


@pytest.mark.parametrize("colours, mode", [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize(
    "count, height, width, columns, scale",
    [
        (1, 4, 3, 1, 24),  # enlarged to 96 pixels
        (6, 4, 3, 3, 24),  # ⌈√6⌉ columns
        (10, 8, 8, 10, 11),  # so that 10 columns are at most 900 pixels wide
        (20, 100, 7, 10, 1),  # tall already
        (4, 5, 1000, 2, 1),  # wide already
    ],
)
def test_grid_size_and_every_pixel(count, height, width, columns, scale, colours, mode):
    array, gap = images(count, height, width, colours), 2
    grid = image_grid(array)
    rows = math.ceil(count / columns)
    assert grid.mode == mode
    assert grid.width == columns * (width * scale + gap) + gap
    assert grid.height == rows * (height * scale + gap) + gap
    inked = 0
    for image, cell in zip(array, cells(grid, array, columns, scale, gap), strict=True):
        np.testing.assert_array_equal(cell, np.kron(image, np.ones((scale, scale, 1), np.uint8)))
        inked += cell.size
    sheet = np.asarray(grid)
    # The rest is white: no image has a pixel of 255.
    assert (sheet == 255).sum() == sheet.size - inked


def test_grid_with_given_columns_and_gap():
    array = images(5, 48, 48)
    grid = image_grid(array, columns=2, gap=7)
    assert (grid.width, grid.height) == (2 * (96 + 7) + 7, 3 * (96 + 7) + 7)
    for image, cell in zip(array, cells(grid, array, 2, 2, 7), strict=True):
        np.testing.assert_array_equal(cell, np.kron(image, np.ones((2, 2, 1), np.uint8)))
    assert (np.asarray(grid)[-7 - 96 :, 7 + 96 :] == 255).all()  # the sixth place is empty


def test_grid_leaves_the_images_alone():
    array = images(3)
    before = array.copy()
    image_grid(array)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("colours", [1, 3])
def test_save_images_writes_the_grid_and_nothing_else(tmp_path, colours):
    array = images(4, colours=colours)
    path = str(tmp_path / "deep" / "er" / "grid.png")
    assert save_images(array, path) == path
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(image_grid(array)))
    assert os.listdir(tmp_path / "deep" / "er") == ["grid.png"]


def test_save_replaces_an_older_file(tmp_path):
    path = str(tmp_path / "a.png")
    save_images(images(9), path)
    save_images(images(2), path)
    with Image.open(path) as saved:
        assert saved.size == image_grid(images(2)).size


def test_a_bare_file_name_is_saved_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(images(1), "a.png")
    assert os.listdir(tmp_path) == ["a.png"]
