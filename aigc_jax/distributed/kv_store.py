"""JAX's coordination service: a small store of keys that the processes of a run share.

Importing this does not import JAX, so that signals are listened for before anything slow happens.
"""

import ctypes
import signal
from collections.abc import Callable
from typing import Any

PREFIX = "aigc_jax/"
_service: Any = None
_handler: Any = None


def attach() -> None:
    """Takes up JAX's connection between the processes, once it stands, if there is one.

    A question asked before that would end the process.
    """
    global _service
    # There is no public name for it; `jax.experimental.multihost_utils` takes it from here too.
    from jax._src.distributed import global_state

    _service = global_state if global_state.client is not None else None


def on_abort(act: Callable[[], None]) -> None:
    """Calls `act` instead of dying when JAX's client gives up because the coordinator is gone.

    It calls `abort` in a thread of C++, from where only a C handler can be called.
    """
    global _handler
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: act())  # kept from collection
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


def process_index() -> int:
    """Returns the index of this process in its run."""
    return 0 if _service is None else _service.process_id


def process_count() -> int:
    """Returns the number of processes of the run."""
    return 1 if _service is None else _service.num_processes


def put(key: str, value: str) -> None:
    """Sets a key, for all processes to see."""
    _service.client.key_value_set(PREFIX + key, value, allow_overwrite=True)


def get(key: str) -> str | None:
    """A key's value; None if nobody has set it."""
    return get_all(key.rpartition("/")[0] + "/").get(key)


def get_all(folder: str) -> dict[str, str]:
    """The keys that begin with `folder`, which ends in a slash."""
    pairs = _service.client.key_value_dir_get(PREFIX + folder)
    return {key.removeprefix(PREFIX): value for key, value in pairs}


def barrier(name: str, seconds: float) -> None:
    """Waits for all processes; raises after so many seconds."""
    _service.client.wait_at_barrier(PREFIX + name, int(seconds * 1000))
