"""Slots of about the same length for both sides, what tells that one was disturbed, and ratios."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aigc_jax.tools.bench import check

Work = Callable[[int], Any]  # does the work so many times, and is done when it returns
DRAWS = 2000  # of the bootstrap
# The threads of PyTorch's OpenMP wait busily for more work for some milliseconds.
REST = 0.02


class Slot:
    """Work as often as it fits into a slot; returns the seconds for once.

    The first call, which does not count, finds out how often that is. Work that fits in more than
    once is begun by one time that does not count, which brings its memory back into the caches.

    Args:
      work: has been done before: nothing is compiled now.
      seconds: of a slot; 0: the work is done once.
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
    """What tells how fast the machine is: the middle time of a few matrix products."""
    time.sleep(REST)
    return check.probe()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of medians, and the ends of its middle 95%.

    The interval is over pairs of neighbouring slots drawn with replacement (Efron 1979).
    """
    pairs_PS = np.array([ours, theirs])
    index_DS = np.random.default_rng(0).integers(len(ours), size=(DRAWS, len(ours)))
    ours_D, theirs_D = np.median(pairs_PS[:, index_DS], axis=-1)
    low, high = np.quantile(ours_D / theirs_D, (0.025, 0.975))
    return statistics.median(ours) / statistics.median(theirs), float(low), float(high)
