"""The one exception that the command line turns into a sentence instead of a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the person at the keyboard can put right.

    The message is one sentence that says what is wrong and what to do. `aigc` prints it without a
    traceback and exits with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause naming the known word closest to `word`, or all of them if none is close."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"it knows: {', '.join(known)}"
