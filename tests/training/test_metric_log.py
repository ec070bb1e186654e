"""metrics.jsonl and TensorBoard: what is written, read again, and kept on resume."""

import json
import math
import os

import pytest

from aigc_jax.training.metric_log import METRICS, MetricsFile, read_metrics


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
def test_truncated_last_line_is_dropped_and_rewritten(tmp_path, tail):
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
