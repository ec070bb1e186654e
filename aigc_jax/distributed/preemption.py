"""Preemption: a run that is asked to stop saves its state and exits.

A thread reads signals from Python's wakeup file descriptor, so a signal is handled even while the
main thread is inside the compiler. What follows depends on the phase of the run:

- Interruptible: everything is saved (before the first step, in evaluation and sampling). The thread
  waits for pending writes and exits the process.
- Otherwise the loop finishes its step, saves, and raises `Stopped`.

A request to one process is a request to all. Processes vote on stopping after each step, so that
all stop after the same one. A process that exits in an interruptible phase announces it; the others
need not wait for it, because its progress is saved by all.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from aigc_jax.core.errors import Stopped, UserError, one_line
from aigc_jax.core.streams import write_stderr
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.main_process import is_main_process

SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL = 0.25  # seconds between polls for requests of other processes
LEAVE = 5.0  # seconds to wait for the other processes before exit
AGAIN = 1.0  # seconds: signals within them are one request, as to a process and its group
REQUEST, LEFT = "stop/request", "stop/left"


class PreemptionHandler:
    """Handles requests to stop: from signals, after `listen`, or from `request`."""

    def __init__(self):
        self._requested = threading.Event()
        self._lock, self._announced = threading.RLock(), threading.Lock()
        self._finish: Callable[[], None] | None = None
        # Signals seen by the thread and by the main thread: their number, and the time of the last.
        self._signals = {"thread": (0, -AGAIN), "main": (0, -AGAIN)}
        self._listening = self._leaving = self._left = False
        self._vote: Any = None

    @property
    def requested(self) -> bool:
        """True if this or another process has been asked to stop."""
        return self._requested.is_set()

    def request(self) -> None:
        """Asks the run to stop, in all processes."""
        self._requested.set()

    def agreed(self) -> bool:
        """Returns whether to stop after this step, the same in all processes; a collective call."""
        if not self._listening or kv_store.process_count() == 1:
            return self.requested
        if self._vote is None:
            from aigc_jax.distributed.processes import DelayedVote

            self._vote = DelayedVote()
        return self._vote(self.requested)

    @contextlib.contextmanager
    def interruptible(self, finish: Callable[[], None]) -> Iterator[None]:
        """Context in which the process may exit at any moment.

        Args:
          finish: waits for pending writes before the exit.

        Raises:
          Stopped: if a stop was requested before.
        """
        if self.requested:
            finish()
            self.shutdown_barrier()
            raise Stopped("stopped; all progress is saved")
        with self._lock:
            self._finish = finish
        try:
            yield
        finally:
            with self._lock:  # never released by a thread that is about to exit the process
                self._finish = None

    @contextlib.contextmanager
    def listen(self) -> Iterator["PreemptionHandler"]:
        """Handles SIGTERM and SIGINT as requests to stop; to be called in the main thread.

        Until the first interruptible phase has ended, the process may exit at any moment.
        """
        self._finish = lambda: None
        read, write = socket.socketpair()
        write.setblocking(False)
        self._listening = True
        threading.Thread(target=self._watch, args=(read,), daemon=True, name="stop").start()
        old_fd = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        # Signals that a shell ignores for a background job stay ignored.
        heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        before = {s: signal.signal(s, self._handle) for s in heard}
        for s in heard:
            signal.siginterrupt(s, False)  # pending reads and writes continue
        try:
            yield self
        finally:
            self._listening = False
            signal.set_wakeup_fd(old_fd)
            for s, handler in before.items():
                signal.signal(s, handler)
            write.close()

    def _watch(self, read: socket.socket) -> None:
        while self._listening:
            ready, _, _ = select.select([read], [], [], POLL)
            received = read.recv(64) if ready else b""
            if ready and not received:
                return
            for number in received:
                if number in SIGNALS:
                    self._signalled(number, "thread")
            if kv_store.process_count() > 1:
                self._sync_requests()
            if self.requested and self._finish is not None and not self._leaving:
                self._leaving = True  # in a thread of its own: a second signal must be handled
                threading.Thread(
                    target=self._exit_if_interruptible, daemon=True, name="leave"
                ).start()

    def _handle(self, number: int, frame: Any) -> None:
        """Handles a signal in the main thread, as Python calls it between bytecodes.

        The thread misses signals while an event loop in the main thread uses the wakeup file
        descriptor.
        """
        self._signalled(number, "main")

    def _signalled(self, number: int, thread: str) -> None:
        now = time.monotonic()
        count, last = self._signals[thread]
        self._signals[thread] = (count + (now - last >= AGAIN), now)
        if self._signals[thread][0] > 1:
            os._exit(128 + number)
        self._announce(
            f"{signal.Signals(number).name}: saving, then exiting; a second one exits at once"
        )
        self._requested.set()

    def _announce(self, message: str) -> None:
        """Announces once, from the main process, that the run is about to stop."""
        if self._announced.acquire(blocking=False) and is_main_process():
            write_stderr(f"\naigc: {message}")

    def _sync_requests(self) -> None:
        """Shares a request with the other processes, and reads theirs."""
        try:
            if self.requested:
                kv_store.put(REQUEST, "1")
            elif kv_store.get(REQUEST):
                self._announce("another process was asked to stop: saving, then exiting")
                self._requested.set()
            if kv_store.get(LEFT) and not self._left:
                self._exit(lambda: None)
        except Exception:  # the coordinator is gone, which `Watchdog` reports
            pass

    def _exit_if_interruptible(self) -> None:
        with self._lock:
            if self._finish is not None:
                self._exit(self._finish)
        self._leaving = False

    def _exit(self, finish: Callable[[], None]) -> None:
        """Exits the process, whatever the main thread does."""
        code = Stopped.code
        try:
            finish()
            if is_main_process():
                write_stderr("aigc: stopped; all progress is saved")
        except UserError as e:
            write_stderr(f"aigc: error: {e}")
            code = e.code
        except Exception as e:
            write_stderr(f"aigc: error: {one_line(e)}")
            code = 1
        self.shutdown_barrier()
        os._exit(code)

    def shutdown_barrier(self) -> None:
        """Announces the exit and waits until the other processes know, at most `LEAVE` seconds."""
        if kv_store.process_count() == 1:
            return
        self._left = True
        with contextlib.suppress(Exception):
            kv_store.put(LEFT, "1")
            kv_store.barrier("leave", LEAVE)
        if is_main_process():  # it holds the store: last to exit
            time.sleep(2 * POLL)
