"""Stopping on request: a run that is preempted saves where it stands and leaves.

A signal is noticed by a thread, through the file descriptor that Python's own handler writes to, so
it is noticed even while the main thread is deep in the compiler. What follows depends on where the
run is:

- *Free*: all that was done is saved (before the first step, in evaluation and sampling). The
  watching thread has what is being written finished, and the process ended.
- Otherwise the loop finishes its step, saves, and raises `Stopped`.

Among several processes a request of one is a request of all. Whether to stop after a step is put to
the vote with that step, so that all stop after the same one. A process that leaves while it is free
says so; the others need not wait for it, because what it had reached is saved by all.
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
POLL = 0.25  # seconds between two looks at the other processes' requests
LEAVE = 5.0  # seconds to wait for the other processes when leaving
AGAIN = 1.0  # seconds: a launcher may signal a process and then its group, which is one request
REQUEST, LEFT = "stop/request", "stop/left"


class PreemptionHandler:
    """A request to stop. Without `listen` nobody makes one."""

    def __init__(self):
        self._requested = threading.Event()
        self._lock, self._announced = threading.RLock(), threading.Lock()
        self._finish: Callable[[], None] | None = None
        # How many signals the thread and the main thread have heard, and when the last one.
        self._heard = {"thread": (0, -AGAIN), "main": (0, -AGAIN)}
        self._listening = self._leaving = self._left = False
        self._vote: Any = None

    @property
    def requested(self) -> bool:
        """Whether this process has been asked to stop, or has heard of another that was."""
        return self._requested.is_set()

    def request(self) -> None:
        """Asks the run to stop, in all processes."""
        self._requested.set()

    def agreed(self) -> bool:
        """Whether to stop after this step; the same in all processes, which all call it."""
        if not self._listening or kv_store.process_count() == 1:
            return self.requested
        if self._vote is None:
            from aigc_jax.distributed.processes import DelayedVote

            self._vote = DelayedVote()
        return self._vote(self.requested)

    @contextlib.contextmanager
    def interruptible(self, finish: Callable[[], None]) -> Iterator[None]:
        """A phase in which the process may leave at any moment.

        Args:
          finish: what to wait for before leaving.

        Raises:
          Stopped: if the request came before.
        """
        if self.requested:
            finish()
            self.shutdown_barrier()
            raise Stopped("stopped; all that was done is saved")
        with self._lock:
            self._finish = finish
        try:
            yield
        finally:
            with self._lock:  # held for good by a thread that is about to end the process
                self._finish = None

    @contextlib.contextmanager
    def listen(self) -> Iterator["PreemptionHandler"]:
        """Takes SIGTERM and SIGINT for requests; for the main thread of a program.

        Until the first free phase has ended, nothing is at stake, and the process may leave.
        """
        self._finish = lambda: None
        read, write = socket.socketpair()
        write.setblocking(False)
        self._listening = True
        threading.Thread(target=self._watch, args=(read,), daemon=True, name="stop").start()
        old_fd = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        # What a shell had ignored for a job in the background stays ignored.
        heard = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        before = {s: signal.signal(s, self._handle) for s in heard}
        for s in heard:
            signal.siginterrupt(s, False)  # what is being read or written goes on
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
                self._hear()
            if self.requested and self._finish is not None and not self._leaving:
                self._leaving = True  # in a thread of its own: a second signal must be heard
                threading.Thread(target=self._leave_if_free, daemon=True, name="leave").start()

    def _handle(self, number: int, frame: Any) -> None:
        """Python's handler, in the main thread, when it comes to it.

        It hears what the thread does not: an event loop in the main thread may for a while have
        taken the file descriptor for its own.
        """
        self._signalled(number, "main")

    def _signalled(self, number: int, ear: str) -> None:
        now = time.monotonic()
        count, last = self._heard[ear]
        self._heard[ear] = (count + (now - last >= AGAIN), now)
        if self._heard[ear][0] > 1:
            os._exit(128 + number)
        self._announce(
            f"{signal.Signals(number).name}: saving, then leaving; a second one leaves at once"
        )
        self._requested.set()

    def _announce(self, what: str) -> None:
        """Says once, and in process 0 only, that the run is about to end."""
        if self._announced.acquire(blocking=False) and is_main_process():
            write_stderr(f"\naigc: {what}")

    def _hear(self) -> None:
        """Passes a request on to the other processes, and hears of theirs."""
        try:
            if self.requested:
                kv_store.put(REQUEST, "1")
            elif kv_store.get(REQUEST):
                self._announce("another process is to stop: saving, then leaving")
                self._requested.set()
            if kv_store.get(LEFT) and not self._left:
                self._leave(lambda: None)
        except Exception:  # the coordinator is gone, which is for `Monitor` to say
            pass

    def _leave_if_free(self) -> None:
        with self._lock:
            if self._finish is not None:
                self._leave(self._finish)
        self._leaving = False

    def _leave(self, finish: Callable[[], None]) -> None:
        """Ends the process, whatever the main thread does."""
        code = Stopped.code
        try:
            finish()
            if is_main_process():
                write_stderr("aigc: stopped; all that was done is saved")
        except UserError as e:
            write_stderr(f"aigc: error: {e}")
            code = e.code
        except Exception as e:
            write_stderr(f"aigc: error: {one_line(e)}")
            code = 1
        self.shutdown_barrier()
        os._exit(code)

    def shutdown_barrier(self) -> None:
        """Tells the other processes, and waits a little for them to hear it."""
        if kv_store.process_count() == 1:
            return
        self._left = True
        with contextlib.suppress(Exception):
            kv_store.put(LEFT, "1")
            kv_store.barrier("leave", LEAVE)
        if is_main_process():  # it holds the store: last to leave
            time.sleep(2 * POLL)
