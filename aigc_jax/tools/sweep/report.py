"""Writes the trials of a search as a table and a plot."""

import csv
import math
import os
from typing import Any

from aigc_jax.runs.report.terminal import terminal_table
from aigc_jax.tools.sweep.search_space import Range, Search

SHOWN = 20  # trials in the printed table; the file has all


def save_trials(study: Any, search: Search, workdir: str) -> str:
    """Writes `trials.csv` and `trials.png`; returns a table of the best trials.

    Args:
      study: `optuna.Study` of the search.
      search: its definition.
      workdir: the folder of the search.
    """
    keys = [r.key for r in search.ranges]
    found = sorted(finished_trials(study, search), key=lambda row: row[2], reverse=search.maximize)
    heading = ["trial", "state", search.metric, *keys, "folder"]
    rows = [
        [str(t.number), t.state.name.lower(), _number(value) if math.isfinite(value) else "-"]
        + [_number(t.params.get(k, "")) for k in keys]
        + [os.path.join("trials", t.user_attrs.get("folder", str(t.number)))]
        for t, _, value in found
    ]
    with open(os.path.join(workdir, "trials.csv"), "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([heading, *rows])
    picture = draw([row for row in found if math.isfinite(row[2])], search, workdir)
    lines = [terminal_table([heading, *rows[:SHOWN]])]
    if len(rows) > SHOWN:
        lines.append(f"… and {len(rows) - SHOWN} more in {os.path.join(workdir, 'trials.csv')}")
    if rows:
        lines.append(f"best: {os.path.join(workdir, rows[0][-1])}; {picture} plots all trials")
    return "\n".join(lines)


def finished_trials(study: Any, search: Search) -> list[tuple[Any, bool, float]]:
    """Returns (trial, whether it is complete, last value) of complete and pruned trials."""
    worst = -math.inf if search.maximize else math.inf
    rows = []
    for t in study.get_trials(deepcopy=False):
        if t.state.name == "COMPLETE":
            rows.append((t, True, t.value))
        elif t.state.name == "PRUNED":
            last = max(t.intermediate_values, default=None)
            rows.append((t, False, worst if last is None else t.intermediate_values[last]))
    return rows


def draw(rows: list[tuple[Any, bool, float]], search: Search, workdir: str) -> str:
    """Plots the metric over the trials and over each field; returns the path of the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * (1 + len(search.ranges)), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [None, *search.ranges]
    for i, field in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for done, style in ((True, "o"), (False, "x")):
            points = [(_x_value(t, field), v) for t, whole, v in rows if whole == done]
            if points:
                label = "complete" if done else "ended early"
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        if field is None:
            best = sorted((t.number, v) for t, whole, v in rows if whole)
            so_far: list[tuple[int, float]] = []
            pick = max if search.maximize else min
            for number, v in best:
                so_far.append((number, pick(v, *(b for _, b in so_far[-1:])) if so_far else v))
            if so_far:
                axes.step(
                    *zip(*so_far, strict=True), where="post", linewidth=1, label="best so far"
                )
                axes.legend(fontsize=7)
        elif field.choices:
            axes.set_xticks(range(len(field.choices)), [str(c) for c in field.choices])
        elif field.log:
            axes.set_xscale("log")
        axes.set_xlabel("trial" if field is None else field.key, fontsize=9)
        axes.set_ylabel(search.metric if i == 0 else "", fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    path = os.path.join(workdir, "trials.png")
    figure.savefig(path, dpi=110)
    return path


def _x_value(trial: Any, field: Range | None) -> float:
    """Value of a trial on the horizontal axis."""
    if field is None:
        return trial.number
    value = trial.params[field.key]
    return field.choices.index(value) if field.choices else value


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
