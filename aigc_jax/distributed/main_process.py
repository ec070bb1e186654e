"""The main process of a run: process 0, which writes files and messages on behalf of all.

Importing this does not import JAX, so that it can be used before anything slow.
"""

import sys


def is_main_process() -> bool:
    """Returns whether this is process 0 of the run, or its only process."""
    # Before JAX is imported, no processes have been joined. `jax.process_index()` would initialise
    # the devices, which may block for long.
    distributed = sys.modules.get("jax._src.distributed")
    return distributed is None or distributed.global_state.process_id == 0


def log_main(message: str) -> None:
    """Writes one line to stderr, from the main process only."""
    if is_main_process():
        print(f"aigc: {message}", file=sys.stderr, flush=True)
