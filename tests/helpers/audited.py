"""Runs Python in a process of its own, and lists what it did that reading a file never should.

Python reports such things as audit events (PEP 578), whichever library does them.
"""

import json
import subprocess
import sys
import tempfile
import textwrap
from typing import NamedTuple

# Code out of data, other programs, the network. Opening a file is watched if it is written to.
WATCHED = (
    "pickle.find_class",
    "marshal.load",
    "marshal.loads",
    "exec",
    "open",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "socket.connect",
    "urllib.Request",
)
# Who turns code into functions as a part of importing modules and defining classes.
IMPORTING = (
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
    "<frozen zipimport>",
    "/collections/__init__.py",
    "/dataclasses.py",
    "/attr/_make.py",
    "/six.py",
    "/multiprocessing/sharedctypes.py",
    "/prometheus_client/decorator.py",
)


class Event(NamedTuple):
    """One audit event.

    Attributes:
      name: the event's.
      what: its first arguments.
      callers: the files of the calling functions, the innermost first.
    """

    name: str
    what: str
    callers: list[str]


PRELUDE = """
import os, sys
from json import dumps as _json
sys.path[:0] = {path!r}

def _watch(watched, importing, out):
    def callers():
        frame, files = sys._getframe(2), []
        while frame is not None and len(files) < 12:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        return files

    busy = []

    def hook(name, args):
        if name not in watched or busy:
            return
        if name == "open" and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
        files = callers()
        code = name == "exec" or name.startswith("marshal.")
        if code and files and files[0].endswith(importing):
            return
        busy.append(1)
        try:
            what = repr(args[:2])[:500]
            os.write(out, _json((name, what, files)).encode() + b"\\n")
        finally:
            busy.clear()

    sys.addaudithook(hook)

_watch({watched!r}, {importing!r}, os.open({out!r}, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
del _watch
"""


def audit(script: str, cwd: str, timeout: float = 300) -> list[Event]:
    """What `script` did of the `WATCHED`, from its first line to its end.

    Args:
      script: Python source; it may import aigc_jax.
      cwd: the folder it runs in.
      timeout: seconds.

    Raises:
      AssertionError: if the script fails.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".events") as events:
        prelude = PRELUDE.format(
            path=sys.path, watched=WATCHED, importing=IMPORTING, out=events.name
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", prelude + textwrap.dedent(script)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr
        return [Event(*json.loads(line)) for line in events]
