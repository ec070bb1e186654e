"""Performance regression check: times in units of a matrix product, compared with a baseline.

Seconds are not comparable between machines, or on one machine under load. Times relative to a
matrix product that is timed just before and after are.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from aigc_jax.core.errors import UserError, did_you_mean, one_line, shorten
from aigc_jax.core.workdir import write_text_atomically
from aigc_jax.experiment import build
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.tools.bench import hardware
from aigc_jax.tools.bench.decoding import can_decode, decoding
from aigc_jax.tools.bench.measure import Steps, load_inputs
from aigc_jax.tools.bench.timing import Side, interleaved, ratio

MAX_SLOWDOWN = 0.15  # growth of a ratio that is a regression
# The configs of a new baseline: one per family.
CONFIGS = {
    "lm": "configs/lm/quickstart.py",
    "gan": "configs/gan/quickstart.py",
    "vae": "configs/vae/quickstart.py",
    "diffusion": "configs/diffusion/quickstart.py",
}
SIZE, REPEATS = 1024, 5  # of the matrix product, and its repetitions in a turn
SECONDS_PER_TURN = 0.5  # seconds of steps at each turn
ROUNDS = 7


def probe() -> float:
    """Median seconds of the matrix product, the unit of all times."""
    return hardware.matmul_times(SIZE, times=REPEATS).median


def sides_of(name: str, path: str, turn: float = SECONDS_PER_TURN) -> dict[str, Side]:
    """The work of a config to time: a train step and, if it generates text, a step of decoding.

    Args:
      name: of the config, for the names of the sides.
      path: of the config file.
      turn: seconds of train steps in a turn.

    Raises:
      UserError: if the config or its data cannot be found.
    """
    config = build.parse_config(load_recipe(path))
    steps = Steps(*load_inputs(config))
    number = max(round(turn / max(steps.take(5).median, 1e-6)), 3) + 2
    sides: dict[str, Side] = {f"{name} step": lambda: steps.take(number).median}
    if can_decode(steps.run):
        sides[f"{name} token"] = lambda: decoding(steps.run, steps.state, 1, times=3)[
            "seconds_per_step"
        ]
    return sides


def ratios(
    configs: Mapping[str, str],
    *,
    rounds: int = ROUNDS,
    sides_of: Callable[[str, str], Mapping[str, Side]] = sides_of,
    probe: Side = probe,
) -> dict[str, dict[str, Any]]:
    """Times of each side of the configs, in units of the matrix product.

    Args:
      configs: config files by name.
      rounds: turns of each side.
      sides_of: (name, file) → the work to time, by name.
      probe: returns the seconds of the unit.

    Returns:
      By name of the side: `ratio`, its `spread`, the median `seconds` and the number of `disturbed`
      turns.
    """
    sides = {k: side for name, path in configs.items() for k, side in sides_of(name, path).items()}
    found = interleaved(sides, rounds, probe)
    result = {}
    for name, (own, unit) in found.items():
        each = ratio(own, unit)
        result[name] = {
            "ratio": each.median,
            "spread": each.spread,
            "seconds": own.median,
            "disturbed": own.disturbed,
        }
    return result


def regressions(
    baseline: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Relative growth of the ratios that have grown by more than `MAX_SLOWDOWN`, by name."""
    shares = {k: now[k]["ratio"] / baseline[k]["ratio"] - 1 for k in baseline if k in now}
    return {k: share for k, share in shares.items() if share > MAX_SLOWDOWN}


def check_baseline(path: str, measured: Callable[..., dict[str, dict[str, Any]]] = ratios) -> int:
    """Prints current ratios beside the baseline's; returns 1 if one has regressed or is missing.

    A config that seems slower is measured again; only regressions in both measurements count.

    Args:
      path: of the baseline.
      measured: configs → ratios.

    Raises:
      UserError: if the baseline does not exist or is invalid.
    """
    baseline = read_baseline(path)
    now = measured(baseline["configs"])
    slower = regressions(baseline["ratios"], now)
    again = {k: path for k, path in baseline["configs"].items()
             if any(name.split(" ")[0] == k for name in slower)}  # fmt: skip
    if again:
        second = measured(again)
        for name in regressions(baseline["ratios"], now):
            now[name] = min(now[name], second[name], key=lambda r: r["ratio"])
        slower = regressions(baseline["ratios"], now)
    gone = baseline["ratios"].keys() - now.keys()
    print(f"times in units of a {SIZE}×{SIZE} float32 matrix product on the same machine")
    there, here = baseline.get("machine", {}), hardware.machine()
    if other := [k for k in ("device", "cores", "versions") if there.get(k) != here[k]]:
        print(f"the baseline was written on another machine: {', '.join(other)} differ")
    for name, was in baseline["ratios"].items():
        if name in gone:
            print(f"{name:<18} {was['ratio']:>9.3f} → missing")
            continue
        change = now[name]["ratio"] / was["ratio"] - 1
        note = f"  more than {MAX_SLOWDOWN:.0%} slower" if name in slower else ""
        print(f"{name:<18} {was['ratio']:>9.3f} → {now[name]['ratio']:>9.3f} {change:>+7.1%}"
              f" (± {now[name]['spread']:.0%}){note}")  # fmt: skip
    return 1 if slower or gone else 0


def write_baseline(path: str, measured: Callable[..., dict[str, dict[str, Any]]] = ratios) -> None:
    """Measures the configs of an existing baseline, else `CONFIGS`, and writes the baseline.

    Args:
      path: of the baseline.
      measured: configs → ratios.
    """
    configs = read_baseline(path)["configs"] if os.path.exists(path) else CONFIGS
    found = measured(configs)
    baseline = {"machine": hardware.machine(), "configs": dict(configs), "ratios": found}
    write_text_atomically(path, json.dumps(baseline, indent=1) + "\n")


def read_baseline(path: str) -> dict[str, Any]:
    """Reads a baseline.

    Raises:
      UserError: if it does not exist or is invalid.
    """
    try:
        with open(path, encoding="utf-8") as f:
            baseline = json.load(f)
    except (OSError, ValueError) as e:
        raise UserError(
            f"cannot read the baseline {shorten(path)} ({one_line(e)}): write one with aigc bench"
            f" --write_baseline={shorten(path)}"
        ) from e
    parts = baseline if isinstance(baseline, dict) else {}
    for key in ("configs", "ratios"):
        if not isinstance(parts.get(key), dict):
            raise UserError(
                f"the baseline {shorten(path)} has no '{key}'"
                f" ({did_you_mean(key, parts or ['nothing'])}):"
                " write it again with --write_baseline"
            )
    return baseline
