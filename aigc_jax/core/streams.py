"""Standard streams that survive a closed terminal or pipe."""

import contextlib
import os
import sys
from typing import Any


class UnbreakableStream:
    """A text stream that ignores writes after its reader has closed it."""

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
    """Makes stdout and stderr safe to write to, whether open, closed or broken."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # so that no file of the run gets the descriptor of a closed stream
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, UnbreakableStream):
            nowhere = stream is None
            setattr(sys, name, UnbreakableStream(open(os.devnull, "w") if nowhere else stream))  # noqa: SIM115


def write_stderr(message: str) -> None:
    """Writes one line to stderr, if it is open; safe in signal handlers, unlike `print`."""
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode())
