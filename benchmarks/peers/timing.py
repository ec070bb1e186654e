"""Sides that take turns, so that what else the machine does befalls all of them."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

SLOWER = 1.3  # times the middle of a side's slots so far: then something else was in the way
FOREIGN = 0.1  # share of all cores that other processes had, above which a slot is disturbed
TRIES = 3  # of a slot, if it is disturbed
DRAWS = 2000  # of the bootstrap

# Does the work so many times and is done when it returns; what it returns, if anything, is the
# seconds that count.
Side = Callable[[int], float | None]


@dataclasses.dataclass(frozen=True)
class Slots:
    """What was measured.

    Attributes:
      seconds: for the work once, of each side slot by slot.
      disturbed: how many of all slots were so to the last try.
    """

    seconds: tuple[tuple[float, ...], ...]
    disturbed: int


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of medians, and the ends of its middle 95%.

    The interval is over pairs of neighbouring slots drawn with replacement (Efron 1979).
    """
    pairs_PS = np.array([ours, theirs])
    index_DS = np.random.default_rng(0).integers(len(ours), size=(DRAWS, len(ours)))
    ours_D, theirs_D = np.median(pairs_PS[:, index_DS], axis=-1)
    low, high = np.quantile(ours_D / theirs_D, (0.025, 0.975))
    return statistics.median(ours) / statistics.median(theirs), float(low), float(high)


def alternate(
    sides: Sequence[Side],
    slots: int,
    seconds: float = 0.0,
    *,
    clock: Callable[[], float] = time.perf_counter,
    foreign: Callable[[], float] | None = None,
) -> Slots:
    """All sides in turn: first, second, first, …, in slots of about the same length.

    A slot is repeated, a few times at most, if it took much longer than the side's slots before, or
    if other processes had much of the machine meanwhile. A slot that does the work more than once
    begins with one that does not count, which brings the side's memory back into the caches.

    Args:
      sides: have been called before: nothing is compiled in a slot.
      slots: of each side.
      seconds: that a slot is to take; 0, or work that takes longer: it is done once.
      clock: in seconds.
      foreign: the share of the cores that other processes had since it was last asked.
    """
    foreign = foreign or Others().share
    times = [_times(side, seconds, clock) for side in sides]
    found: list[list[float]] = [[] for _ in sides]
    disturbed = 0
    for _ in range(slots):
        for side, repeats, own in zip(sides, times, found, strict=True):
            for _ in range(TRIES):
                if repeats > 1:
                    side(1)
                foreign()
                took = _clocked(side, repeats, clock)
                bad = is_disturbed(took, own, foreign())
                if not bad:
                    break
            own.append(took)
            disturbed += bad
    return Slots(tuple(map(tuple, found)), disturbed)


def _times(side: Side, seconds: float, clock: Callable[[], float]) -> int:
    """How often a side does its work in so many seconds; at least once."""
    return max(1, round(seconds / max(_clocked(side, 1, clock), 1e-9))) if seconds else 1


def _clocked(side: Side, repeats: int, clock: Callable[[], float]) -> float:
    """Seconds for the work once."""
    began = clock()
    own = side(repeats)
    return (clock() - began if own is None else own) / repeats


def is_disturbed(took: float, before: Sequence[float], foreign: float) -> bool:
    """Whether a slot says more about the rest of the machine than about its side.

    Args:
      took: its seconds.
      before: those of the side's slots before.
      foreign: the share of the cores that others had.
    """
    return foreign > FOREIGN or (bool(before) and took > SLOWER * statistics.median(before))


class Others:
    """What other processes do here by Linux's own account; nothing where there is none."""

    def __init__(self) -> None:
        self.last = self._read()

    def share(self) -> float:
        """The share of all cores that others had since this was last asked, 0…1."""
        before, self.last = self.last, self._read()
        busy, everything, own = (b - a for a, b in zip(before, self.last, strict=True))
        return max(busy - own, 0.0) / everything if everything > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Seconds of cores: busy ones, all, those of this process and its ended children."""
        spent = os.times()
        own = spent.user + spent.system + spent.children_user + spent.children_system
        try:
            with open("/proc/stat", encoding="ascii") as f:
                ticks = [int(n) for n in f.readline().split()[1:9]]
        except (OSError, ValueError):
            return 0.0, 0.0, own
        second = os.sysconf("SC_CLK_TCK")
        idle, everything = sum(ticks[3:5]) / second, sum(ticks) / second
        return everything - idle, everything, own
