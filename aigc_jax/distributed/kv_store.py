"""Key-value store shared by the processes of a run: JAX's coordination service.

Importing this does not import JAX, so that signal handlers are installed before anything slow.
"""

import ctypes
import signal
from collections.abc import Callable
from typing import Any

PREFIX = "aigc_jax/"
_service: Any = None
_handler: Any = None


def attach() -> None:
    """Connects to JAX's coordination service, if the run has several processes.

    Must be called after JAX has connected: requests before that abort the process.
    """
    global _service
    # Private API of JAX, which `jax.experimental.multihost_utils` uses too: there is no public one.
    from jax._src.distributed import global_state

    _service = global_state if global_state.client is not None else None


def on_abort(act: Callable[[], None]) -> None:
    """Calls `act` instead of aborting when JAX's client loses the coordinator.

    JAX calls `abort` in a C++ thread, so the signal needs a C handler.
    """
    global _handler
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(
        lambda number: act()
    )  # referenced, so that it is not garbage-collected
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


def process_index() -> int:
    """Returns the index of this process in its run."""
    return 0 if _service is None else _service.process_id


def process_count() -> int:
    """Returns the number of processes of the run."""
    return 1 if _service is None else _service.num_processes


def put(key: str, value: str) -> None:
    """Sets a key for all processes."""
    _service.client.key_value_set(PREFIX + key, value, allow_overwrite=True)


def get(key: str) -> str | None:
    """Returns the value of a key; None if it is not set."""
    return get_all(key.rpartition("/")[0] + "/").get(key)


def get_all(folder: str) -> dict[str, str]:
    """Returns the keys with the prefix `folder`, which ends in a slash, and their values."""
    pairs = _service.client.key_value_dir_get(PREFIX + folder)
    return {key.removeprefix(PREFIX): value for key, value in pairs}


def barrier(name: str, seconds: float) -> None:
    """Waits for all processes; raises after `seconds`."""
    _service.client.wait_at_barrier(PREFIX + name, int(seconds * 1000))
