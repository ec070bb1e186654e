"""Start-up barrier: the processes of a run report to process 0 before JAX connects them.

JAX waits without naming the missing processes, and aborts with a stack trace when it times out. So
each process first reports here, on the port that JAX's service uses afterwards.
"""

import contextlib
import json
import os
import selectors
import socket
import time

from aigc_jax.core.errors import PeerLost, UserError, one_line
from aigc_jax.core.streams import write_stderr
from aigc_jax.distributed.cluster import ProcessInfo

AGAIN = 0.2  # seconds between attempts to reach process 0
READ = 2.0  # seconds to wait for the message of a connected process
PATIENCE = 10.0  # seconds after which process 0 reports the missing processes
LINE = 4096  # maximum bytes of a message


def wait_for_all(place: ProcessInfo, seconds: float) -> None:
    """Waits until all processes of the run have reported.

    Args:
      place: index and coordinator of this process.
      seconds: timeout for the others.

    Raises:
      PeerLost: if some do not arrive; it names them.
      UserError: if the port is in use, or the arguments of processes contradict each other.
    """
    if place.process == 0:
        with contextlib.closing(_Host(place)) as host:
            host.gather(seconds)
    else:
        _report(place, seconds)


class _Host:
    """Server side, in process 0."""

    def __init__(self, place: ProcessInfo):
        self._place = place
        self._here: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self._selector = selectors.DefaultSelector()
        port = place.address[1]
        try:
            self._server = _listen(port)
        except OSError as e:
            raise UserError(
                f"process 0 cannot listen on port {port} ({one_line(e)}): choose another"
                " --coordinator"
            ) from e
        self._selector.register(self._server, selectors.EVENT_READ)

    def gather(self, seconds: float) -> None:
        """Waits for all processes, then releases them."""
        began, reported = time.monotonic(), False
        while absent := self._absent():
            waited = time.monotonic() - began
            if waited > seconds:
                error = missing(absent, self._place.count, seconds)
                self._answer({"error": str(error), "code": error.code})
                raise error
            if waited > PATIENCE and not reported:
                reported = True
                write_stderr(f"aigc: waiting for {_names(absent)} of {self._place.count}")
            for key, _ in self._selector.select(timeout=min(1.0, seconds)):
                if key.fileobj is self._server:
                    self._welcome()
                else:
                    self._dismiss(key.data)
        self._answer({"ready": True})

    def _absent(self) -> list[int]:
        return [p for p in range(1, self._place.count) if p not in self._here]

    def _welcome(self) -> None:
        """Accepts one connection; those that are not from processes of the run are dropped."""
        connection, _ = self._server.accept()
        connection.settimeout(READ)
        try:
            hello = json.loads(_read_line(connection))
            process, count, name = int(hello["process"]), int(hello["count"]), str(hello["name"])
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()
            return
        wrong = ""
        if count != self._place.count or not 0 < process < count:
            wrong = (
                f"process 0 was started as one of {self._place.count}, but {name} as process"
                f" {process} of {count}: use the same --num_processes for all"
            )
        elif process in self._here:
            wrong = (
                f"{name} and {self._names[process]} were both started as process {process}: use"
                " a different --process_id for each"
            )
        if wrong:
            _send(connection, {"error": wrong, "code": UserError.code})
            connection.close()
            return
        self._here[process], self._names[process] = connection, name
        self._selector.register(connection, selectors.EVENT_READ, process)

    def _dismiss(self, process: int) -> None:
        """Removes a process that has ended while it waited for the others."""
        connection = self._here.pop(process)
        self._selector.unregister(connection)
        connection.close()

    def _answer(self, message: dict[str, object]) -> None:
        for connection in self._here.values():
            _send(connection, message)
        for connection in self._here.values():
            # The side that closes first keeps the port in TIME_WAIT: let that be the other one.
            with contextlib.suppress(OSError):
                connection.recv(1)

    def close(self) -> None:
        for connection in (*self._here.values(), self._server):
            connection.close()
        self._selector.close()


def _report(place: ProcessInfo, seconds: float) -> None:
    """Client side, in the other processes."""
    until = time.monotonic() + seconds
    name = f"pid {os.getpid()} on {socket.gethostname()}"
    hello = {"process": place.process, "count": place.count, "name": name}
    while True:
        answer = {}
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection(place.address, timeout=READ) as connection,
        ):
            _send(connection, hello)
            # Process 0 may have started later; its own timeout names the missing processes.
            connection.settimeout(seconds + READ)
            answer = json.loads(_read_line(connection))
        if answer.get("ready"):
            return
        if "error" in answer:
            kind = PeerLost if answer.get("code") == PeerLost.code else UserError
            raise kind(str(answer["error"]))
        if time.monotonic() > until:
            raise PeerLost(
                f"process 0 has not answered at {place.coordinator} within {seconds:g} s: check"
                " that it is running there and can be reached, then start all again"
            )
        time.sleep(AGAIN)


def missing(absent: list[int], count: int, seconds: float) -> PeerLost:
    """Returns the error for processes that have not arrived."""
    have, they = ("have", "they have") if len(absent) > 1 else ("has", "it has")
    return PeerLost(
        f"{_names(absent)} of {count} {have} not arrived within {seconds:g} s: check why {they} not"
        " started, then start all again"
    )


def _names(processes: list[int]) -> str:
    """Formats processes, such as "process 3" or "processes 3, 4 and 5"."""
    if len(processes) == 1:
        return f"process {processes[0]}"
    shown = [str(p) for p in processes[:8]]
    more = len(processes) - len(shown)
    last = f"{more} more" if more else shown.pop()
    return f"processes {', '.join(shown)} and {last}"


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
            )
    return socket.create_server(("", port), backlog=512)


def _send(connection: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < LINE:
        received = connection.recv(LINE)
        if not received:
            break
        line += received
    return line
