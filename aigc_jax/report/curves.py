"""A run's records as curves, and pictures in a row."""

import os
from collections.abc import Mapping, Sequence
from typing import Any


def save_curves(records: Sequence[dict[str, Any]], path: str, keys: Sequence[str]) -> str:
    """Draws `keys` over steps, training and held-out, one panel each; returns the PNG's path.

    Args:
      records: of metrics.jsonl.
      path: where the picture goes.
      keys: the metrics to show; those that no record has are left out.
    """
    # The object interface draws without a display and leaves a notebook's pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [k for k in keys if any(r.get(k) is not None for r in records)]
    figure = Figure(figsize=(3.6 * max(len(shown), 1), 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for i, key in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        for kind, style in (("train", "-"), ("eval", "o-")):
            points = [
                (r["step"], r[key]) for r in records if r["kind"] == kind and r.get(key) is not None
            ]
            if points:
                label = {"train": "training", "eval": "held out"}[kind]
                axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2)
        axes.set_title(key, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def side_by_side(pictures: Mapping[str, str], path: str) -> str:
    """PNGs in one row, each under its title; returns the path of the new PNG."""
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
