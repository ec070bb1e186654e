"""Reading files named by the user (regular files only, bounded by memory) and atomic writes."""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO

from aigc_jax.core.errors import UserError, one_line, shorten


def is_remote(path: str) -> bool:
    """Returns whether a path is in an object store (gs://, s3://, …)."""
    return "://" in path


def open_file(path: str) -> BinaryIO:
    """Opens a regular file for reading bytes.

    Raises:
      UserError: if it cannot be read, or is a folder, pipe, socket or device, which may never end.
    """
    path = os.path.expanduser(path)
    try:
        # Checked before it is opened, as opening can block on a pipe or trigger a device; and
        # after, as it may have been replaced in between.
        regular = stat.S_ISREG(os.stat(path).st_mode)
        if regular:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            f = os.fdopen(descriptor, "rb")
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return f
            f.close()
    except (OSError, ValueError) as e:  # ValueError: a NUL, or invalid Unicode
        raise UserError(f"{shorten(path)} cannot be read: {one_line(e)}") from e
    raise UserError(f"{shorten(path)} cannot be read: it is not a regular file")


def file_size(f: BinaryIO) -> int:
    """Returns the number of bytes of an open file."""
    return os.fstat(f.fileno()).st_size


def physical_memory() -> int:
    """Returns the bytes of memory that this process may use on this machine."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as f:
            limits.append(int(f.read()))
    return min(limits)


def most_memory() -> int:
    """Returns the peak resident set size of this process so far, in bytes.

    On Linux, `getrusage` would start with the peak of the parent process.
    """
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # which Windows has not

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def check_memory(size: int, what: str) -> None:
    """Raises UserError if `size` bytes are more than this machine's memory."""
    memory = physical_memory()
    if size > memory:
        raise UserError(
            f"{what} needs {size / 1e9:.3g} GB, more than the {memory / 1e9:.3g} GB of memory that"
            " this machine has: make it smaller"
        )


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """Yields a temporary path that is renamed to `path` if the block succeeds.

    After a crash at any instant either the old file or the new one is at `path`.

    Raises:
      OSError: if it cannot be written.
    """
    temporary = path + ".tmp"
    yield temporary
    with open(temporary, "rb") as f:
        os.fsync(f.fileno())  # the contents must be on the disk before the rename
    os.replace(temporary, path)
