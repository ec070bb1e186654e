"""The page of a report, and its curves."""

import numpy as np
from PIL import Image

from aigc_jax.runs.report.curves import further, save_curves
from aigc_jax.runs.report.page import MetricRow, Section, write_page


def record(step, kind="train", **values):
    return {"step": step, "kind": kind, **values}


def test_further_metrics_leave_out_derived_ones():
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


def test_curves_are_four_per_row(tmp_path):
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
    sections = [
        Section("One", "About it.", [MetricRow("loss", 1.0)], alarms),
        Section("Two", "Well."),
    ]
    with open(write_page(str(tmp_path / "i.html"), "Runs", "Two.", sections)) as f:
        first, second = f.read().split("<section>")[1:]
    places = [first.index(word) for word in (
        "About it.", "step 40: it is &lt;too&gt; good: stop (critic/accuracy)", "step 90", "<table>"
    )]  # fmt: skip
    assert places == sorted(places) and "alarms" not in second
