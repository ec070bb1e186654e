"""Load of other processes, which probes cannot detect if it is constant."""

import os

BUSY = 0.05  # share of all cores above which a machine is not idle


class Others:
    """CPU time of other processes by /proc/stat; 0 on other systems than Linux."""

    def __init__(self) -> None:
        self.last = self._read()

    def share(self) -> float:
        """Share of all cores that other processes used since the last call, 0 to 1."""
        before, self.last = self.last, self._read()
        busy, everything, own = (b - a for a, b in zip(before, self.last, strict=True))
        return min(max(busy - own, 0.0) / everything, 1.0) if everything > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Core seconds: busy, total, of this process and its finished children."""
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
