"""What a run leaves to look at: image grids, text samples and metrics."""

import json
import math
import os

import numpy as np
import pytest
from PIL import Image

from aigc_jax.modalities.image.grid import image_grid, save_images
from aigc_jax.modalities.text.sample_file import join_texts, save_texts
from aigc_jax.runs.report.curves import further, save_curves
from aigc_jax.runs.report.page import Row, Section, write_page
from aigc_jax.training.metric_log import METRICS, MetricsFile, read_metrics


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
    save_texts(["a"], "a.txt")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a.txt"]


def test_save_texts_numbers_them(tmp_path):
    path = str(tmp_path / "deep" / "samples.txt")
    assert save_texts(["first\nline", "", "中文🙂"], path) == path
    text = (tmp_path / "deep" / "samples.txt").read_text(encoding="utf-8")
    assert text == "--- 1 ---\nfirst\nline\n--- 2 ---\n\n--- 3 ---\n中文🙂\n"
    assert text == join_texts(["first\nline", "", "中文🙂"]) + "\n"
    assert os.listdir(tmp_path / "deep") == ["samples.txt"]


# Metrics -------------------------------------------------------------------------------------


def record(step, kind="train", **values):
    return {"step": step, "kind": kind, **values}


def write(workdir, records, step=0):
    metrics = MetricsFile(str(workdir), step)
    for r in records:
        metrics.write(r)
    metrics.flush()
    metrics.close()


def test_metrics_round_trip(tmp_path):
    records = [record(1, loss=0.5, skipped=0.0), record(1, "eval", loss=1), record(2, loss=1e-9)]
    write(tmp_path, records)
    assert read_metrics(str(tmp_path)) == records
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == records


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path):
    metrics = MetricsFile(str(tmp_path), 0)
    metrics.write(record(1, loss=0.5))
    assert read_metrics(str(tmp_path)) == [record(1, loss=0.5)]
    metrics.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_becomes_null(tmp_path, value):
    write(tmp_path, [record(1, loss=value, accuracy=0.5)])
    line = (tmp_path / METRICS).read_text()
    assert '"loss": null' in line and "NaN" not in line and "Infinity" not in line
    assert read_metrics(str(tmp_path)) == [record(1, loss=None, accuracy=0.5)]


def test_writing_does_not_change_the_record(tmp_path):
    given = record(1, loss=math.nan)
    write(tmp_path, [given])
    assert math.isnan(given["loss"])


def test_a_run_without_metrics_has_none(tmp_path):
    assert read_metrics(str(tmp_path)) == []


def test_resuming_drops_later_records(tmp_path):
    first = [record(s, loss=float(s)) for s in (2, 4, 6, 8)]
    first.insert(2, record(4, "eval", loss=0.0))
    write(tmp_path, first)
    write(tmp_path, [record(6, loss=60.0)], step=4)
    assert read_metrics(str(tmp_path)) == [*first[:3], record(6, loss=60.0)]


def test_a_fresh_start_drops_all_records(tmp_path):
    write(tmp_path, [record(2, loss=2.0)])
    write(tmp_path, [record(1, loss=1.0)], step=0)
    assert read_metrics(str(tmp_path)) == [record(1, loss=1.0)]


@pytest.mark.parametrize(
    "tail", ['{"step": 4, "kind": "tr', "{", '{"step": 4, "loss": 1.', "\x00\x00"]
)
def test_a_last_line_that_was_cut_off_is_left_out_and_written_anew(tmp_path, tail):
    first = [record(2, loss=2.0), record(3, loss=3.0)]
    write(tmp_path, first)
    with open(tmp_path / METRICS, "a") as f:
        f.write(tail)
    assert read_metrics(str(tmp_path)) == first
    write(tmp_path, [record(4, loss=4.0)], step=3)
    assert read_metrics(str(tmp_path)) == [*first, record(4, loss=4.0)]
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path):
    path = tmp_path / METRICS
    path.write_text(json.dumps(record(2, loss=2.0)))
    write(tmp_path, [record(3, loss=3.0)], step=2)
    assert read_metrics(str(tmp_path)) == [record(2, loss=2.0), record(3, loss=3.0)]


def test_numbers_also_go_to_tensorboard(tmp_path):
    write(tmp_path, [record(1, loss=0.5, note="text", bad=math.nan)])
    (events,) = (f for f in os.listdir(tmp_path) if "tfevents" in f)
    data = (tmp_path / events).read_bytes()
    assert b"train/loss" in data
    assert b"train/note" not in data and b"train/bad" not in data and b"train/step" not in data


# The page ------------------------------------------------------------------------------------


def test_further_metrics_are_those_that_say_something_of_their_own():
    records = [
        record(i, loss=1.0, accuracy=i / 4, accuracy_real=1.0, skipped=0.0, grad_norm=2.0,
               steps_per_second=9.0, time=1e9, alarm="loss", bad=None, **{"critic/r1": i / 2})
        for i in range(1, 4)
    ]  # fmt: skip
    said = dict(distance_low=0.1, distance_high=0.4, distance_floor=0.1, seed=7, report={}, ok=True)
    said |= dict(units=8, units_1=3)
    records += [record(i, "eval", distance=i / 5, **said) for i in (2, 3)]
    found = ["accuracy", "accuracy_real", "grad_norm", "critic/r1", "distance", "units", "units_1"]
    assert further(records, ["loss"]) == found
    assert further([*records, record(9, "eval", once=1.0)], ["loss"]) == found


def test_curves_stand_four_in_a_row(tmp_path):
    records = [record(i, **{key: float(i) for key in "abcde"}) for i in range(3)]
    sizes = []
    for keys in ("abcd", "abcde", "ab?"):
        path = save_curves(records, str(tmp_path / "c.png"), keys, [(1, "a", "it is low")])
        with Image.open(path) as drawn:
            sizes.append(drawn.size)
            red = np.asarray(drawn.convert("RGB")).astype(int) @ [1, -1, -1] > 50
        assert red[:, : red.shape[1] // len(keys.strip("?"))].any()
        assert not red[:, -red.shape[1] // 5 :].any()
    (w, h), tall, narrow = sizes
    assert tall == (w, 2 * h) and narrow == (w // 2, h)


def test_a_page_begins_a_section_with_its_alarms(tmp_path):
    alarms = [(40, "critic/accuracy", "it is <too> good: stop"), (90, "x", "it is gone")]
    sections = [Section("One", "About it.", [Row("loss", 1.0)], alarms), Section("Two", "Well.")]
    with open(write_page(str(tmp_path / "i.html"), "Runs", "Two.", sections)) as f:
        first, second = f.read().split("<section>")[1:]
    places = [first.index(word) for word in (
        "About it.", "step 40: it is &lt;too&gt; good: stop (critic/accuracy)", "step 90", "<table>"
    )]  # fmt: skip
    assert places == sorted(places) and "alarms" not in second
