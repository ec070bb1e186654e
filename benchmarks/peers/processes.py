"""How long a process of each side takes to its first train step, and the most memory it needs.

Ours starts twice each time: with a cache of compiled programs that has all it needs, and with an
empty one.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Process:
    """Starts of one side.

    Args:
      side: "ours" or "theirs".
      work: "lm" or "unet".
      cache: the folder for what is kept between starts; "": a fresh one each time.
    """

    def __init__(self, side: str, work: str, cache: str = ""):
        self.command = [sys.executable, "-m", "benchmarks.peers.child", side, work]
        self.cache = cache
        self.bytes: list[int] = []  # the most memory of each start

    def __call__(self) -> float:
        """Seconds from a start to the first step."""
        with tempfile.TemporaryDirectory() as fresh:
            # Below this folder our compiled programs are kept.
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
    """Both sides; ours with a cache that its first start fills, and "cold" with an empty one."""
    with tempfile.TemporaryDirectory() as cache:
        yield {
            "ours": Process("ours", work, cache),
            "theirs": Process("theirs", work),
            "cold": Process("ours", work),
        }
