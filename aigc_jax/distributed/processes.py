"""Processes of one run: joining them, and collective operations on host values."""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import PeerLost, UserError, one_line
from aigc_jax.core.streams import write_stderr
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.cluster import resolve_process
from aigc_jax.distributed.rendezvous import wait_for_all

JOINING = 60  # seconds in which JAX connects processes that have all started


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int
) -> None:
    """Joins the processes of a run, if it has several; must be called before JAX is used.

    Args:
      coordinator: HOST:PORT of process 0, "auto" if a cluster must be detected, "none" for a run of
        one process; None: detected where possible.
      num_processes: number of processes; None: detected.
      process_id: index of this process; None: detected.
      seconds: time to wait for the others.

    Raises:
      PeerLost: if some do not start; it names them.
      UserError: if they cannot be joined.
    """
    info = resolve_process(coordinator, num_processes, process_id, seconds)
    if info is None:
        return
    wait_for_all(info, seconds)

    def give_up() -> None:
        write_stderr(
            "\naigc: error: another process of the run, or the coordinator at"
            f" {info.coordinator}, was gone before all had joined: start all processes again"
        )
        os._exit(PeerLost.code)

    # `Watchdog` monitors the others: JAX's own heartbeat would end the process with a stack trace.
    # And its preemption service would replace the SIGTERM handler of `PreemptionHandler`.
    jax.config.update("jax_enable_preemption_service", False)
    kv_store.on_abort(give_up)
    try:
        jax.distributed.initialize(
            coordinator_address=info.coordinator,
            num_processes=info.count,
            process_id=info.process,
            local_device_ids=info.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=JOINING,
            heartbeat_timeout_seconds=24 * 3600,
        )
    except (ValueError, RuntimeError, TypeError) as e:
        raise UserError(f"the processes of the run cannot be joined ({one_line(e)})") from e
    kv_store.attach()


def all_agree(here: bool) -> bool:
    """Returns whether `here` is true in every process; a collective operation and barrier."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.int32(here))))


def broadcast_from_main(value: Any) -> Any:
    """Returns the main process's value, a number or an array, in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(np.asarray(value))


def gather_rows(rows: np.ndarray, part: int) -> np.ndarray:
    """Gathers the rows of all parts of a batch, of 32-bit types; a collective operation.

    Args:
      rows: of this process's part.
      part: index of the part; several processes may have the same.
    """
    from jax.experimental import multihost_utils

    parts, gathered = multihost_utils.process_allgather((np.int32(part), rows))
    found = dict(zip(parts.tolist(), gathered, strict=True))
    return np.concatenate([found[part] for part in sorted(found)])


class DelayedVote:
    """A logical or over processes whose result comes one step late, so that no step waits."""

    def __init__(self):
        count = jax.process_count()
        mine = {d.process_index: d for d in reversed(jax.devices())}
        mesh = jax.make_mesh(
            (count,),
            ("process",),
            axis_types=(AxisType.Auto,),
            devices=[mine[p] for p in range(count)],
        )
        self._split = NamedSharding(mesh, P("process"))
        self._any = jax.jit(lambda votes: votes.max(), out_shardings=NamedSharding(mesh, P()))
        self._pending: jax.Array | None = None

    def __call__(self, here: bool) -> bool:
        """Submits this step's vote; returns the result of the step before."""
        votes = jax.make_array_from_process_local_data(self._split, np.array([here], np.int32))
        verdict, self._pending = self._pending, self._any(votes)
        return verdict is not None and int(verdict) > 0
