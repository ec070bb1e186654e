"""What else the machine does: slots tell what changes, this tells what is always there."""

import os

BUSY = 0.05  # share of all cores above which a machine is not idle


class Others:
    """What other processes do here by Linux's own account; nothing where there is none."""

    def __init__(self) -> None:
        self.last = self._read()

    def share(self) -> float:
        """The share of all cores that others had since this was last asked, 0…1."""
        before, self.last = self.last, self._read()
        busy, everything, own = (b - a for a, b in zip(before, self.last, strict=True))
        return min(max(busy - own, 0.0) / everything, 1.0) if everything > 0 else 0.0

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
