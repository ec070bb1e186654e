"""Plots metric curves of a run, and joins pictures side by side."""

import collections
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = 4
# Fields of a record that are not metrics of the model.
ABOUT = {"step", "time", "seed", "compiles", "data_wait", "steps_per_second", "examples_per_second"}


def further(records: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> list[str]:
    """Returns the metrics of a run other than `shown` that are worth a curve.

    Omitted are the ends of confidence intervals and the constant reference values that accompany
    other metrics, metrics that are always 0, and metrics with a single record.

    Args:
      records: records of metrics.jsonl.
      shown: metrics that have a curve already.
    """
    values: dict[str, set[float]] = {}
    trained, times = set(), collections.Counter[str]()
    for record in records:
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                values.setdefault(key, set()).add(value)
                times[key] += 1
                if record["kind"] == "train":
                    trained.add(key)

    def beside(key: str) -> bool:
        parts = key.split("_")
        prefixes = ["_".join(parts[:n]) for n in range(1, len(parts))]
        above = [values[name] for name in prefixes if name in values]
        if parts[-1] in ("low", "high"):
            return bool(above)
        return key not in trained and len(values[key]) == 1 < max(map(len, above), default=0)

    left_out = ABOUT.union(shown)
    moved = [key for key in values if times[key] > 1 and any(values[key])]
    return [key for key in moved if key not in left_out and not beside(key)]


def save_curves(
    records: Sequence[dict[str, Any]],
    path: str,
    keys: Sequence[str],
    alarms: Sequence[tuple[int, str, str]] = (),
) -> str:
    """Plots metrics over steps, training and held-out, one panel each; returns the PNG's path.

    Args:
      records: records of metrics.jsonl.
      path: path of the PNG.
      keys: metrics to plot; those without a record are omitted.
      alarms: (step, metric, message) of failed health checks, marked by a line in the metric's
        panel.
    """
    # The object interface needs no display and does not affect a notebook's pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [k for k in keys if any(r.get(k) is not None for r in records)]
    columns, rows = min(max(len(shown), 1), COLUMNS), max(math.ceil(len(shown) / COLUMNS), 1)
    figure = Figure(figsize=(3.6 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, key in enumerate(shown):
        axes = figure.add_subplot(rows, columns, i + 1)
        for kind, style in (("train", "-"), ("eval", "o-")):
            points = [
                (r["step"], r[key]) for r in records if r["kind"] == kind and r.get(key) is not None
            ]
            if points:
                label = {"train": "training", "eval": "held out"}[kind]
                axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2)
        for step in (step for step, metric, _ in alarms if metric == key):
            axes.axvline(step, color="tab:red", linestyle="--", linewidth=1, label="alarm")
        axes.set_title(key, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def side_by_side(pictures: Mapping[str, str], path: str) -> str:
    """Joins PNGs in one row, each under its title; returns the path of the new PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(3.4 * len(pictures), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, file) in enumerate(pictures.items()):
        axes = figure.add_subplot(1, len(pictures), i + 1)
        with Image.open(file) as image:
            axes.imshow(image.convert("RGB"), interpolation="nearest")
        axes.set_title(title)
        axes.axis("off")
    figure.savefig(path, dpi=110)
    return path
