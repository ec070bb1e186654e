"""Watchdog: detects that another process of the run is dead, frozen or stuck.

Every process writes a heartbeat with the progress of its main thread to the coordination service
twice a second. If a heartbeat is missing, the others end with a sentence that names the process:
otherwise a collective operation would wait forever.
"""

import contextlib
import json
import os
import socket
import threading
import time
from typing import Any

from aigc_jax.core.config import WatchdogConfig
from aigc_jax.core.errors import PeerLost, Stopped, UserError, one_line
from aigc_jax.core.streams import write_stderr
from aigc_jax.distributed import kv_store

BEAT = 0.5  # seconds between heartbeats
# Parts of the error messages of collective operations and barriers when a process is missing.
SIGNS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "onnection", "barrier", "BARRIER")


class Watchdog:
    """Watches the other processes in a thread; does nothing in a run of one process.

    Args:
      config: its `peer_timeout` and `stuck_timeout`, in seconds.
    """

    def __init__(self, config: WatchdogConfig):
        self._config = config
        self._me, self._count = kv_store.process_index(), kv_store.process_count()
        self._ticks, self._where = 0, "start"
        self._running = self._count > 1
        if self._running:
            self._seen = {p: PeerStatus() for p in range(self._count)}
            kv_store.on_abort(self._coordinator_gone)
            threading.Thread(target=self._watch, daemon=True, name="monitor").start()

    def heartbeat(self, where: str) -> None:
        """Records progress of the main thread, and its phase `where`."""
        self._ticks, self._where = self._ticks + 1, where

    def close(self) -> None:
        self._running = False

    def failed(self, error: Exception) -> None:
        """Publishes why this process ends, or waits for the report of the process that caused it.

        If process 0 reports the same `UserError`, such as an invalid config, that is noted in it.
        """
        if not self._running or isinstance(error, Stopped):
            return
        code = error.code if isinstance(error, UserError) else 1
        if any(sign in str(error) for sign in SIGNS):
            # It failed because another process is gone, which `_watch` will name.
            time.sleep(self._config.peer_timeout + 4 * BEAT)
            code = PeerLost.code
        last = json.dumps({"reason": one_line(error), "code": code})
        with contextlib.suppress(Exception):
            kv_store.put(f"last/{self._me}", last)
            time.sleep(BEAT)
            if isinstance(error, UserError) and self._me > 0:
                error.reported_by_main = kv_store.get("last/0") == last
            time.sleep(BEAT)  # the store ends with process 0

    def _watch(self) -> None:
        beats = 0
        while self._running:
            beats += 1
            beat = {
                "beats": beats,
                "ticks": self._ticks,
                "where": self._where,
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
            try:
                kv_store.put(f"alive/{self._me}", json.dumps(beat))
                alive, last = kv_store.get_all("alive/"), kv_store.get_all("last/")
            except Exception:
                if self._running:
                    self._coordinator_gone()
                return
            for p, seen in self._seen.items():
                seen.update(json.loads(alive.get(f"alive/{p}", "{}")))
                if p != self._me and f"last/{p}" in last:
                    self._follow(f"process {p} ({seen})", **json.loads(last[f"last/{p}"]))
            self._find_missing()
            time.sleep(BEAT)

    def _follow(self, name: str, reason: str, code: int) -> None:
        """Ends this process with the exit status of another one that has failed.

        The same error often occurs in all processes: each gets some time to raise it itself.
        """
        time.sleep(3 * BEAT)
        if self._me == 0:
            write_stderr(f"\naigc: error: {name} has ended: {reason}")
        os._exit(code)

    def _find_missing(self) -> None:
        silent = {p: s for p, s in self._seen.items() if s.silent > self._config.peer_timeout}
        if silent:
            names = " and ".join(f"process {p} ({s})" for p, s in silent.items())
            self._end(
                f"{names} has not answered for {self._config.peer_timeout} s: it is dead or frozen"
            )
        if min(s.still for s in self._seen.values()) > self._config.stuck_timeout:
            slowest = min(self._seen, key=lambda p: self._seen[p].ticks)
            seen = self._seen[slowest]
            self._end(
                f"no process has made progress for {self._config.stuck_timeout} s: process"
                f" {slowest} ({seen}) is behind the others, in {seen.where}"
            )

    def _coordinator_gone(self) -> None:
        self._end(f"process 0 ({self._seen[0]}), which coordinates the run, is gone")

    def _end(self, message: str) -> None:
        """Ends this process, whose main thread is blocked."""
        write_stderr(f"\naigc: error: {message}; {ADVICE}")
        os._exit(PeerLost.code)


ADVICE = "start all processes again to resume from the newest checkpoint"


class PeerStatus:
    """Heartbeat state of another process."""

    def __init__(self):
        self.beats, self.ticks, self.where, self._name = 0, 0, "start", "no heartbeat yet"
        self._heard = self._moved = time.monotonic()

    def update(self, beat: dict[str, Any]) -> None:
        now = time.monotonic()
        if beat and beat["beats"] != self.beats:
            self._heard = now
            if beat["ticks"] != self.ticks:
                self._moved = now
            self.beats, self.ticks, self.where = beat["beats"], beat["ticks"], beat["where"]
            self._name = f"pid {beat['pid']} on {beat['host']}"

    @property
    def silent(self) -> float:
        """Returns seconds since the last heartbeat."""
        return time.monotonic() - self._heard

    @property
    def still(self) -> float:
        """Returns seconds since the last progress of its main thread."""
        return time.monotonic() - self._moved

    def __str__(self) -> str:
        return self._name
