"""Timed slots of equal length for both sides, the speed probe, and ratios with intervals."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aigc_jax.tools.bench import check

Work = Callable[[int], Any]  # repeats the work and waits for it
DRAWS = 2000  # of the bootstrap
# The threads of PyTorch's OpenMP wait busily for more work for some milliseconds.
REST = 0.02


class Slot:
    """Repeats work as often as it fits into a slot; returns the seconds of one repetition.

    The first call determines the number of repetitions. If there are several, each slot begins with
    one that does not count and fills the caches.

    Args:
      work: to repeat; already compiled.
      seconds: of a slot; 0: one repetition.
      clock: in seconds.
    """

    def __init__(self, work: Work, seconds: float, clock: Callable[[], float] = time.perf_counter):
        self.work, self.seconds, self.clock = work, seconds, clock
        self.times = 0

    def __call__(self) -> float:
        if not self.times:
            once = self._clocked(1)
            self.times = max(1, round(self.seconds / max(once, 1e-9)))
            return once
        if self.times > 1:
            self.work(1)
        return self._clocked(self.times) / self.times

    def _clocked(self, times: int) -> float:
        began = self.clock()
        self.work(times)
        return self.clock() - began


def probe() -> float:
    """Speed of the machine: median seconds of a few matrix products."""
    time.sleep(REST)
    return check.probe()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of medians, and the ends of its 95% interval.

    The interval is from a bootstrap over pairs of neighbouring slots (Efron 1979).
    """
    pairs_PS = np.array([ours, theirs])
    index_DS = np.random.default_rng(0).integers(len(ours), size=(DRAWS, len(ours)))
    ours_D, theirs_D = np.median(pairs_PS[:, index_DS], axis=-1)
    low, high = np.quantile(ours_D / theirs_D, (0.025, 0.975))
    return statistics.median(ours) / statistics.median(theirs), float(low), float(high)
