"""Errors that the command line reports in one sentence without a traceback, and exit codes.

The codes follow BSD's `sysexits.h`, so that a scheduler knows how to react: 75 means run the same
command again, 74 free some space first, 70 inspect the run first.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix.

    The message is one sentence: what is wrong and what to do. `aigc` prints it without a traceback
    and exits with `code`.
    """

    code = 2
    reported_by_main = False  # process 0 prints the same message, so that this one need not

    def __init__(self, message: str):
        # It may contain keys, paths and values of any length, and characters that do not print.
        super().__init__(shorten(message, limit=1000))


class PeerLost(UserError):
    """Another process of the run is dead or stuck."""

    code = 69


class NotFinite(UserError):
    """Training kept producing numbers that are not finite."""

    code = 70


class OutOfMemory(UserError):
    """The run needs more memory than is available."""

    code = 71


class StorageError(UserError):
    """The workdir cannot be written: full, gone or read-only."""

    code = 74


class Stopped(UserError):
    """The run was asked to stop and has saved its state; the same command resumes it."""

    code = 75


def shorten(value: object, limit: int = 300) -> str:
    """Formats `value` for a message: on one line, with its middle elided beyond `limit`."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-(limit // 2) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: BaseException, limit: int = 200) -> str:
    """Returns the message of `error` on one line; its type if the message is empty."""
    said = getattr(error, "strerror", None) or str(error)
    return shorten(" ".join(said.split())[:limit]) or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns a clause naming the known word closest to `word`, or all of them if none is close."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"known are {', '.join(known)}"
