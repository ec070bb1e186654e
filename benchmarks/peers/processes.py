"""How long a process of each side takes to its first train step, and the most memory it needs.

Ours starts twice each time: with a compilation cache that has all it needs, and with an empty one.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.timing import Side


class Process:
    """Starts of one side.

    Args:
      side: "ours" or "theirs".
      work: "lm" or "unet".
      cache: the folder of the compilation cache; "": a fresh one each time.
    """

    def __init__(self, side: str, work: str, cache: str = ""):
        self.command = [sys.executable, "-m", "benchmarks.peers.child", side, work]
        self.cache = cache
        self.bytes: list[int] = []  # the most memory of each start

    def __call__(self, times: int) -> float:
        """Seconds to the first step, of so many starts."""
        return sum(self._start() for _ in range(times))

    def _start(self) -> float:
        with tempfile.TemporaryDirectory() as fresh:
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": self.cache or fresh}
            began = time.perf_counter()
            with subprocess.Popen(
                self.command, stdout=subprocess.PIPE, text=True, env=environment
            ) as process:
                assert process.stdout is not None
                first = process.stdout.readline()
                seconds = time.perf_counter() - began
                rest = process.stdout.read()
        if process.returncode or not first:
            raise RuntimeError(f"{' '.join(self.command)} failed")
        self.bytes.append(int(rest))
        return seconds


@contextmanager
def starts(work: str) -> Iterator[tuple[Process, Process, Process]]:
    """Ours with a warm cache, theirs, and ours with an empty one."""
    with tempfile.TemporaryDirectory() as cache:
        warm = Process("ours", work, cache)
        fill: Side = Process("ours", work, cache)
        fill(1)
        yield warm, Process("theirs", work), Process("ours", work)
