"""Has anything become slower? Ratios to a matrix product, beside those of a baseline.

A step's time says little on another machine, or on the same one when it is busy. In units of a
matrix product that was timed just before and after, it says how well the step is made.
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
from aigc_jax.tools.bench.measure import Steps, load
from aigc_jax.tools.bench.timing import Side, interleaved, ratio

LIMIT = 0.15  # how much a ratio may grow
# What a new baseline holds: each family once.
CONFIGS = {
    "lm": "configs/lm/quickstart.py",
    "gan": "configs/gan/quickstart.py",
    "vae": "configs/vae/quickstart.py",
    "diffusion": "configs/diffusion/quickstart.py",
}
SIZE, PRODUCTS = 1024, 5  # of the product, and how often at each turn
TURN = 0.5  # seconds of steps at each turn
ROUNDS = 7


def probe() -> float:
    """The median time of the matrix product in whose units all else is measured."""
    return hardware.matmul_times(SIZE, times=PRODUCTS).median


def sides_of(name: str, path: str, turn: float = TURN) -> dict[str, Side]:
    """What is timed of a config: its step and, of a language model, a step of decoding.

    Raises:
      UserError: if the config, or its data, cannot be found.
    """
    config = build.parse_config(load_recipe(path))
    steps = Steps(*load(config))
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
    """What is timed of each config, in units of the matrix product.

    Args:
      configs: a name for each, and its file.
      rounds: turns of each.
      sides_of: (name, file) → what to time of it.
      probe: the unit.
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


def grown(
    baseline: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """By what share each ratio has grown, of those that have by more than `LIMIT`."""
    shares = {k: now[k]["ratio"] / baseline[k]["ratio"] - 1 for k in baseline if k in now}
    return {k: share for k, share in shares.items() if share > LIMIT}


def check(path: str, measured: Callable[..., dict[str, dict[str, Any]]] = ratios) -> int:
    """Prints the ratios of now beside the baseline's; 1 if any has grown by more than `LIMIT`
    or is there no more.

    What seems to have grown is measured again, alone with its config: it counts if it has grown
    both times.

    Args:
      path: the baseline.
      measured: configs → ratios.

    Raises:
      UserError: if there is no such baseline, or it is none.
    """
    baseline = read(path)
    now = measured(baseline["configs"])
    slower = grown(baseline["ratios"], now)
    again = {k: path for k, path in baseline["configs"].items()
             if any(name.split(" ")[0] == k for name in slower)}  # fmt: skip
    if again:
        second = measured(again)
        for name in grown(baseline["ratios"], now):
            now[name] = min(now[name], second[name], key=lambda r: r["ratio"])
        slower = grown(baseline["ratios"], now)
    gone = baseline["ratios"].keys() - now.keys()
    print(f"times in units of a {SIZE}×{SIZE} float32 matrix product on the same machine")
    there, here = baseline.get("machine", {}), hardware.machine()
    if other := [k for k in ("device", "cores", "versions") if there.get(k) != here[k]]:
        print(f"the baseline was written elsewhere: {', '.join(other)} differ")
    for name, was in baseline["ratios"].items():
        if name in gone:
            print(f"{name:<18} {was['ratio']:>9.3f} → is gone")
            continue
        change = now[name]["ratio"] / was["ratio"] - 1
        note = f"  more than {LIMIT:.0%} slower" if name in slower else ""
        print(f"{name:<18} {was['ratio']:>9.3f} → {now[name]['ratio']:>9.3f} {change:>+7.1%}"
              f" (± {now[name]['spread']:.0%}){note}")  # fmt: skip
    return 1 if slower or gone else 0


def write(path: str, measured: Callable[..., dict[str, dict[str, Any]]] = ratios) -> None:
    """Measures the configs that a baseline names, or the usual ones, and writes it anew.

    Args:
      path: of the file.
      measured: configs → ratios.
    """
    configs = read(path)["configs"] if os.path.exists(path) else CONFIGS
    found = measured(configs)
    baseline = {"machine": hardware.machine(), "configs": dict(configs), "ratios": found}
    write_text_atomically(path, json.dumps(baseline, indent=1) + "\n")


def read(path: str) -> dict[str, Any]:
    """A baseline.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    try:
        with open(path, encoding="utf-8") as f:
            baseline = json.load(f)
    except (OSError, ValueError) as e:
        raise UserError(
            f"there is no baseline in {shorten(path)} ({one_line(e)}): write one with aigc bench"
            f" --write_baseline={shorten(path)}"
        ) from e
    parts = baseline if isinstance(baseline, dict) else {}
    for key in ("configs", "ratios"):
        if not isinstance(parts.get(key), dict):
            raise UserError(
                f"the baseline {shorten(path)} has no '{key}'"
                f" ({did_you_mean(key, parts or ['nothing'])}):"
                " write it anew with --write_baseline"
            )
    return baseline
