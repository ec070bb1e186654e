"""Timing on a shared machine: medians, spreads, and interleaved comparison of several sides."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Side = Callable[[], float]  # runs the work once and returns its seconds


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of repetitions of the same work.

    Attributes:
      seconds: of each repetition.
      disturbed: repetitions during which the machine's speed changed.
    """

    seconds: tuple[float, ...]
    disturbed: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    def to_json(self) -> dict[str, float]:
        return {
            "median": self.median,
            "spread": self.spread,
            "fastest": min(self.seconds),
            "count": len(self.seconds),
        }


def seconds_of(work: Callable[..., Any], *args: Any) -> float:
    """Seconds of one call, including the computation of its arrays."""
    began = time.perf_counter()
    jax.block_until_ready(work(*args))
    return time.perf_counter() - began


def repeated(work: Callable[..., Any], *args: Any, times: int = 10) -> Times:
    """Times repetitions of a call, after a warm-up call, which compiles."""
    jax.block_until_ready(work(*args))
    return Times(tuple(seconds_of(work, *args) for _ in range(times)))


def interleaved(
    sides: Mapping[str, Side],
    rounds: int,
    probe: Side,
    *,
    tolerance: float = 0.1,
    tries: int = 4,
) -> dict[str, tuple[Times, Times]]:
    """Times several sides in turn, so that slow periods of the machine affect all of them.

    A probe of constant work runs before and after each turn. If it shows that the machine was
    disturbed, the turn is repeated; if no try is undisturbed, the least disturbed one counts.

    Args:
      sides: the work to compare, by name.
      rounds: turns of each side; every other round is in reversed order.
      probe: work that measures the machine's speed, such as a matrix product.
      tolerance: a turn is disturbed if one of its probes takes this share longer than the other or
        than the median of all probes so far.
      tries: maximum number of tries of a turn.

    Returns:
      For each side its times, and those of the probe in the same turns.
    """
    taken: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in sides}
    probes: list[float] = []

    def turn(side: Side) -> tuple[float, float, float]:
        """Returns (disturbance, seconds of the side, seconds of the probe)."""
        before = probe()
        seconds = side()
        after = probe()
        probes.extend((before, after))
        slow, calm = max(before, after), min(min(before, after), statistics.median(probes))
        return slow / calm - 1, seconds, (before + after) / 2

    for name, side in sides.items():  # compiles
        del name
        side()
    probe()
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            best = turn(sides[name])
            for _ in range(tries - 1):
                if best[0] <= tolerance:
                    break
                best = min(best, turn(sides[name]))
            taken[name].append((best[1], best[2], best[0] > tolerance))
    found = {}
    for name, turns in taken.items():
        own, probe_times, disturbed = zip(*turns, strict=True)
        found[name] = Times(own, sum(disturbed)), Times(probe_times, sum(disturbed))
    return found


def ratio(own: Times, probe: Times) -> Times:
    """Times of a side divided by those of the probe in the same turns."""
    pairs = zip(own.seconds, probe.seconds, strict=True)
    return Times(tuple(a / b for a, b in pairs), own.disturbed)
