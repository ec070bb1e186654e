"""Workdir: the folder of a run, its config.json, lock, and checkpoint steps."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from aigc_jax.core.config import Config, differences
from aigc_jax.core.errors import StorageError, UserError
from aigc_jax.core.files import atomic_path, open_file

CONFIG, LOCK = "config.json", "lock"
CHECKPOINTS, SAVED, DAMAGED = "checkpoints", "saved.json", "damaged"


def has_config(workdir: str) -> bool:
    return os.path.exists(os.path.join(workdir, CONFIG))


def check_same_run(workdir: str, old: dict[str, Any], new: Config) -> None:
    """Raises UserError, naming the fields, if two configs are not of the same run.

    Args:
      workdir: its folder, for the message.
      old: the plain config in the folder.
      new: the config to resume with.
    """
    phrases = differences(old, new.raw, new.resumable_fields())
    if phrases:
        more = f" and {len(phrases) - 4} more" if len(phrases) > 4 else ""
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(phrases[:4])}{more}): choose"
            " another --workdir, or the config of that run"
        )


def read_config(workdir: str) -> dict[str, Any]:
    """Reads the config.json of a workdir; UserError if it is missing or damaged."""
    path = os.path.join(workdir, CONFIG)
    try:
        with open_file(path) as f:
            config = json.loads(f.read())
        if not isinstance(config, dict):
            raise ValueError("not a config")
        return config
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read ({e}): repair or remove it") from e


def create_workdir(workdir: str) -> None:
    """Creates the folder; StorageError if it cannot be written."""
    with storage_errors(workdir):
        os.makedirs(os.path.join(workdir, "samples"), exist_ok=True)


def write_config(workdir: str, raw: dict[str, Any]) -> None:
    """Writes config.json atomically; StorageError if it cannot be written."""
    with storage_errors(workdir):
        write_text_atomically(os.path.join(workdir, CONFIG), json.dumps(raw, indent=2))


@contextlib.contextmanager
def storage_errors(workdir: str) -> Iterator[None]:
    """Turns an OSError from a file of the workdir into a StorageError."""
    try:
        yield
    except OSError as e:
        raise StorageError(f"--workdir={workdir} cannot be written: {e.strerror or e}") from e


def write_text_atomically(path: str, text: str) -> None:
    """Writes a file; after a crash either the old one or the new one is there."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.write(text)


class WorkdirLock:
    """Lock that admits one writer per workdir.

    The operating system releases the lock when the process ends, however it ends. Where the file
    system has no locks, host and pid in the lock file decide.
    """

    def __init__(self, workdir: str):
        self._workdir, self._path = workdir, os.path.join(workdir, LOCK)
        with storage_errors(workdir):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._take()
            except BaseException:
                os.close(self._fd)
                raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse(read_lock_holder(self._workdir))
        except OSError:
            holder = read_lock_holder(self._workdir)
            if may_be_running(holder):
                self._refuse(holder)
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(me).encode(), 0)

    def _refuse(self, holder: dict[str, Any]) -> None:
        raise UserError(
            f"{self._workdir} is in use by process {holder.get('pid', '?')} on"
            f" {holder.get('host', 'an unknown host')}: wait for it, stop it, or choose another"
            f" --workdir (if it is surely dead, remove {self._path})"
        )

    def check(self) -> None:
        """Raises StorageError if the workdir was deleted or replaced under the run."""
        try:
            same = os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except OSError:
            same = False
        if not same:
            raise StorageError(
                f"--workdir={self._workdir} was deleted or replaced while the run was writing there"
            )

    def release(self) -> None:
        """Releases the lock; the empty file stays, since removing it would race with a new run."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def read_lock_holder(workdir: str) -> dict[str, Any]:
    """Returns host and pid of the run that is writing to a workdir, or was until it was killed."""
    try:
        with open_file(os.path.join(workdir, LOCK)) as f:
            holder = json.loads(f.read())
    except (UserError, OSError, ValueError, RecursionError):
        return {}
    known = isinstance(holder, dict) and isinstance(holder.get("host"), str)
    return holder if known and isinstance(holder.get("pid"), int) and holder["pid"] > 0 else {}


def may_be_running(holder: dict[str, Any]) -> bool:
    """Returns whether a lock's holder may be running; True if it is on another host."""
    if not holder:
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return holder["pid"] != os.getpid()


def checkpoint_dir(workdir: str) -> str:
    return os.path.join(os.path.abspath(os.path.expanduser(workdir)), CHECKPOINTS)


def checkpoint_steps(workdir: str) -> list[int]:
    """Returns the steps of a workdir's checkpoints, newest first, including incomplete ones.

    Raises:
      UserError: if `checkpoints` is not a folder or cannot be read.
    """
    folder = checkpoint_dir(workdir)
    try:
        return sorted((int(n) for n in os.listdir(folder) if _is_step(n)), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UserError(f"{folder} cannot be read as a folder: {e.strerror}") from e


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def last_saved_step(workdir: str) -> int:
    """Returns the newest step that a run is known to have saved; 0 if it has saved none."""
    try:
        with open_file(os.path.join(os.path.dirname(checkpoint_dir(workdir)), SAVED)) as f:
            step = json.loads(f.read())["step"]
    except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return step if isinstance(step, int) and step > 0 else 0


def has_run(workdir: str) -> bool:
    """Returns whether a run has ever saved there, so that it must be resumed, not restarted."""
    return bool(checkpoint_steps(workdir)) or last_saved_step(workdir) > 0
