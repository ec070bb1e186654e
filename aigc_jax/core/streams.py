"""The standard streams: what nobody reads must not end a run."""

import contextlib
import os
import sys
from typing import Any


class UnbreakableStream:
    """A stream whose reader may go away."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_streams_unbreakable() -> None:
    """Makes the standard streams of a program safe to write to, whether open, closed or broken."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # a file of the run must not get the number of a closed stream
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, UnbreakableStream):
            nowhere = stream is None
            setattr(sys, name, UnbreakableStream(open(os.devnull, "w") if nowhere else stream))  # noqa: SIM115


def write_stderr(message: str) -> None:
    """One line to the person, if there is one; not with `print`, which a signal may interrupt."""
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())
