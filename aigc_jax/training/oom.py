"""Out-of-memory errors: the largest arrays and advice."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from aigc_jax.core.errors import OutOfMemory, UserError, one_line
from aigc_jax.core.files import physical_memory
from aigc_jax.core.state import named_leaves

LARGEST = 5  # number of arrays to list
SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "OUT_OF_MEMORY")


def largest_arrays(
    trees: dict[str, Any], number: int = LARGEST
) -> list[tuple[str, tuple[int, ...], int]]:
    """Returns (name, shape, bytes) of the largest arrays in trees of arrays or shapes."""
    arrays = []
    for name, tree in trees.items():
        for key, leaf in named_leaves(tree):
            size = int(np.prod(leaf.shape, dtype=float)) * np.dtype(leaf.dtype).itemsize
            arrays.append((f"{name}/{key}".rstrip("/"), tuple(leaf.shape), size))
    return sorted(arrays, key=lambda a: a[2], reverse=True)[:number]


def tree_bytes(tree: Any) -> int:
    """Returns the bytes of a tree's arrays."""
    return sum(size for _, _, size in largest_arrays({"": tree}, number=10**9))


def device_memory() -> int:
    """Returns the bytes of memory that a device has for arrays; 0 if unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return physical_memory()
    return int((device.memory_stats() or {}).get("bytes_limit", 0))


def format_bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


@contextlib.contextmanager
def explain_oom(state: Any, batch: Any) -> Iterator[None]:
    """Turns an out-of-memory error inside the block into an OutOfMemory with advice.

    Args:
      state: the train state, or its shapes.
      batch: one host batch, or its shapes.

    Raises:
      OutOfMemory: with the largest arrays and what to change.
    """
    try:
        yield
    except Exception as e:
        if isinstance(e, UserError):
            raise
        if not isinstance(e, MemoryError) and not any(sign in str(e) for sign in SIGNS):
            raise
        raise OutOfMemory(f"{oom_message(state, batch)} ({one_line(e, 100)})") from e


def check_fits(state: Any, batch: Any) -> None:
    """Raises OutOfMemory if the state alone exceeds the memory of a device.

    On a CPU the allocation would succeed, and the operating system would kill the process later.
    """
    limit, needed = device_memory(), tree_bytes(state)
    if limit and needed > limit:
        raise OutOfMemory(oom_message(state, batch))


def oom_message(state: Any, batch: Any) -> str:
    """Formats an out-of-memory message: bytes needed, the largest arrays, and advice."""
    parts = {
        name: getattr(state, name)
        for name in ("params", "opt_state", "ema", "power_ema", "mutables")
    }
    arrays = [
        f"{name} {'×'.join(map(str, shape)) or 'scalar'} ({format_bytes(size)})"
        for name, shape, size in largest_arrays({**parts, "batch": batch})
    ]
    limit, needed = device_memory(), tree_bytes(state)
    has = f" of the device's {format_bytes(limit)}" if limit else ""
    advice = (
        "shard the state over more devices with fsdp in mesh, make the model smaller, or use a"
        " device with more memory"
        if limit and needed > limit
        else "lower data.batch_size, raise train.accumulate (smaller microbatches, same result),"
        " set model.remat=full where the model has it, shard the batch over more devices with"
        " mesh, or make the model smaller"
    )
    return (
        f"out of memory: the state takes {format_bytes(needed)}{has}, a batch"
        f" {format_bytes(tree_bytes(batch))}, and"
        f" activations come on top; the largest arrays are {', '.join(arrays)}: {advice}"
    )
