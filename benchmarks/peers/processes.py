"""Start time of a process to its first train step, and its peak memory.

Ours is measured with a warm and with an empty cache of compiled programs.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Process:
    """Processes of one side.

    Args:
      side: "ours" or "theirs".
      work: "lm" or "unet".
      cache: folder of caches between starts; "": an empty one for each start.
    """

    def __init__(self, side: str, work: str, cache: str = ""):
        self.command = [sys.executable, "-m", "benchmarks.peers.child", side, work]
        self.cache = cache
        self.bytes: list[int] = []  # peak memory of each start

    def __call__(self) -> float:
        """Starts a process; returns the seconds until its first step."""
        with tempfile.TemporaryDirectory() as fresh:
            # The compilation cache is in this folder.
            environment = {**os.environ, "XDG_CACHE_HOME": self.cache or fresh}
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
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
def starts(work: str) -> Iterator[dict[str, Process]]:
    """Yields both sides, ours with a cache that its first start fills, and "cold" with none."""
    with tempfile.TemporaryDirectory() as cache:
        yield {
            "ours": Process("ours", work, cache),
            "theirs": Process("theirs", work),
            "cold": Process("ours", work),
        }
