"""The errors that the command line turns into a sentence instead of a traceback, and exit codes.

The codes follow BSD's `sysexits.h`, so that a scheduler can tell what to do: 75 means run the same
command again, 74 free some space first, 70 look at the run first.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the person at the keyboard can put right.

    The message is one sentence that says what is wrong and what to do. `aigc` prints it without a
    traceback and exits with `code`.
    """

    code = 2
    told = False  # whether process 0 of the run says the same

    def __init__(self, message: str):
        # Keys, paths and values of any kind and length may stand in it.
        super().__init__(shorten(message, limit=1000))


class PeerLost(UserError):
    """Another process of the run is dead or stuck."""

    code = 69


class NotFinite(UserError):
    """Training went on to produce numbers that are not finite."""

    code = 70


class OutOfMemory(UserError):
    """The run needs more memory than there is."""

    code = 71


class StorageError(UserError):
    """The workdir cannot be written: full, gone or read-only."""

    code = 74


class Stopped(UserError):
    """The run was asked to stop and has saved its state; the same command goes on with it."""

    code = 75


def shorten(value: object, limit: int = 300) -> str:
    """`value` for a message: on one line, its middle left out if it is longer than `limit`."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-(limit // 2) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: BaseException, limit: int = 200) -> str:
    """What `error` says, on one line; its type if it says nothing."""
    said = getattr(error, "strerror", None) or str(error)
    return shorten(" ".join(said.split())[:limit]) or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause naming the known word closest to `word`, or all of them if none is close."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"it knows: {', '.join(known)}"
