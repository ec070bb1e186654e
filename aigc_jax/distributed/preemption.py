"""Preemption: a run that is asked to stop saves its state and exits.

Signals are received by a thread, through the file descriptor that Python's signal handler writes
to, so they are noticed even while the main thread is in the compiler. The reaction depends on the
phase of the run:

- *Interruptible*: everything is saved (before the first step, in evaluation and sampling). The
  thread waits for pending writes and ends the process.
- Otherwise the loop finishes its step, saves, and raises `Stopped`.

A request to one of several processes is a request to all. Whether to stop after a step is decided
by a vote in that step, so that all stop after the same one. A process that exits while
interruptible announces it; the others need not wait for it, because everything it had computed is
saved.
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
POLL = 0.25  # seconds between polls of the other processes' requests
LEAVE = 5.0  # seconds to wait for the other processes before exiting
# Seconds within which repeated signals count as one: a launcher may signal a process, then its
# group.
AGAIN = 1.0
REQUEST, LEFT = "stop/request", "stop/left"


class PreemptionHandler:
    """Requests to stop: from signals (`listen`), from other processes, or by `request`."""

    def __init__(self):
        self._requested = threading.Event()
        self._lock, self._announced = threading.RLock(), threading.Lock()
        self._finish: Callable[[], None] | None = None
        # Number and time of the last of the signals received, by the thread and the main thread.
        self._received = {"thread": (0, -AGAIN), "main": (0, -AGAIN)}
        self._listening = self._leaving = self._left = False
        self._vote: Any = None

    @property
    def requested(self) -> bool:
        """Returns whether this process, or a known request to another, has asked it to stop."""
        return self._requested.is_set()

    def request(self) -> None:
        """Asks the run to stop, in all processes."""
        self._requested.set()

    def agreed(self) -> bool:
        """Returns whether to stop after this step; the same in all processes, which all call it."""
        if not self._listening or kv_store.process_count() == 1:
            return self.requested
        if self._vote is None:
            from aigc_jax.distributed.processes import DelayedVote

            self._vote = DelayedVote()
        return self._vote(self.requested)

    @contextlib.contextmanager
    def interruptible(self, finish: Callable[[], None]) -> Iterator[None]:
        """Marks a phase in which the process may exit at any moment.

        Args:
          finish: waits for pending writes, called before exiting.

        Raises:
          Stopped: if there is a request already.
        """
        if self.requested:
            finish()
            self.shutdown_barrier()
            raise Stopped("stopped; everything is saved")
        with self._lock:
            self._finish = finish
        try:
            yield
        finally:
            with self._lock:  # never released by a thread that is about to end the process
                self._finish = None

    @contextlib.contextmanager
    def listen(self) -> Iterator["PreemptionHandler"]:
        """Turns SIGTERM and SIGINT into requests; call it in the main thread of a program.

        The process is interruptible until the first interruptible phase has ended.
        """
        self._finish = lambda: None
        read, write = socket.socketpair()
        write.setblocking(False)
        self._listening = True
        threading.Thread(target=self._watch, args=(read,), daemon=True, name="stop").start()
        old_fd = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        # Signals that a shell ignores for background jobs stay ignored.
        handled = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        before = {s: signal.signal(s, self._handle) for s in handled}
        for s in handled:
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
                self._leaving = True  # in another thread, so that a second signal is noticed
                threading.Thread(target=self._leave_if_free, daemon=True, name="leave").start()

    def _handle(self, number: int, frame: Any) -> None:
        """Handles a signal in the main thread, as soon as Python gets to it.

        It catches signals that the thread misses: an event loop in the main thread may temporarily
        have replaced the wakeup file descriptor.
        """
        self._signalled(number, "main")

    def _signalled(self, number: int, receiver: str) -> None:
        now = time.monotonic()
        count, last = self._received[receiver]
        self._received[receiver] = (count + (now - last >= AGAIN), now)
        if self._received[receiver][0] > 1:
            os._exit(128 + number)
        self._announce(
            f"{signal.Signals(number).name}: saving, then exiting; a second signal exits at once"
        )
        self._requested.set()

    def _announce(self, what: str) -> None:
        """Writes once, and in process 0 only, that the run is about to end."""
        if self._announced.acquire(blocking=False) and is_main_process():
            write_stderr(f"\naigc: {what}")

    def _sync_requests(self) -> None:
        """Forwards a request to the other processes, and receives theirs."""
        try:
            if self.requested:
                kv_store.put(REQUEST, "1")
            elif kv_store.get(REQUEST):
                self._announce("another process was asked to stop: saving, then exiting")
                self._requested.set()
            if kv_store.get(LEFT) and not self._left:
                self._leave(lambda: None)
        except Exception:  # the coordinator is gone, which `Watchdog` reports
            pass

    def _leave_if_free(self) -> None:
        with self._lock:
            if self._finish is not None:
                self._leave(self._finish)
        self._leaving = False

    def _leave(self, finish: Callable[[], None]) -> None:
        """Ends the process, whatever the main thread is doing."""
        code = Stopped.code
        try:
            finish()
            if is_main_process():
                write_stderr("aigc: stopped; everything is saved")
        except UserError as e:
            write_stderr(f"aigc: error: {e}")
            code = e.code
        except Exception as e:
            write_stderr(f"aigc: error: {one_line(e)}")
            code = 1
        self.shutdown_barrier()
        os._exit(code)

    def shutdown_barrier(self) -> None:
        """Announces the exit to the other processes and waits briefly for them to notice."""
        if kv_store.process_count() == 1:
            return
        self._left = True
        with contextlib.suppress(Exception):
            kv_store.put(LEFT, "1")
            kv_store.barrier("leave", LEAVE)
        if is_main_process():  # it hosts the store, hence exits last
            time.sleep(2 * POLL)
