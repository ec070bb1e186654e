"""Times on a machine that others use too: medians, spreads, and sides that take turns."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Side = Callable[[], float]  # does its work once and returns the seconds that it took


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of the same work done several times.

    Attributes:
      seconds: each time's.
      disturbed: how many of them were taken while the machine was slower than before or after.
    """

    seconds: tuple[float, ...]
    disturbed: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
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
    """How long one call takes, until its arrays are there."""
    began = time.perf_counter()
    jax.block_until_ready(work(*args))
    return time.perf_counter() - began


def repeated(work: Callable[..., Any], *args: Any, times: int = 10) -> Times:
    """Times of a call, after one that is not counted (which compiles)."""
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
    """Times of sides that take turns, so that a slow minute falls on all of them.

    A probe of always the same work runs before and after each turn. Where it tells that the machine
    was disturbed, the turn is repeated; where that does not help, the calmest try counts.

    Args:
      sides: what to compare.
      rounds: how often each has its turn; every other round is in reversed order.
      probe: work whose time tells how fast the machine is, such as a matrix product.
      tolerance: a turn is disturbed if one of its probes takes this share longer than the other or
        than the median of all probes so far.
      tries: of each turn, at most.

    Returns:
      The times of each side, and those of the probe at the same turns.
    """
    taken: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in sides}
    probes: list[float] = []

    def turn(side: Side) -> tuple[float, float, float]:
        """How much it was disturbed, its seconds, and the probe's."""
        before = probe()
        seconds = side()
        after = probe()
        probes.extend((before, after))
        slow, calm = max(before, after), min(min(before, after), statistics.median(probes))
        return slow / calm - 1, seconds, (before + after) / 2

    for name, side in sides.items():  # what compiles, does so now
        del name
        side()
    probe()
    for number in range(rounds):
        order: Sequence[str] = list(sides) if number % 2 == 0 else list(reversed(sides))
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
    """A side's times in units of the probe's at the same turns."""
    pairs = zip(own.seconds, probe.seconds, strict=True)
    return Times(tuple(a / b for a, b in pairs), own.disturbed)
