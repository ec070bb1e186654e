"""Joins the processes of a run; votes, broadcasts and gathers among them."""

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

JOINING = 60  # seconds for JAX to connect the processes after the rendezvous


def join_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int
) -> None:
    """Joins the processes of a run, if it has several; must be called before JAX is used.

    Args:
      coordinator: HOST:PORT of process 0; "auto" requires detection of a cluster, "none" is for a
        run of one process; by default a detected cluster is used.
      num_processes: number of processes; detected by default.
      process_id: index of this process; detected by default.
      seconds: timeout for the other processes.

    Raises:
      PeerLost: if some do not arrive; it names them.
      UserError: if they cannot be joined.
    """
    place = resolve_process(coordinator, num_processes, process_id, seconds)
    if place is None:
        return
    wait_for_all(place, seconds)

    def give_up() -> None:
        write_stderr(
            "\naigc: error: another process of the run, or the coordinator at"
            f" {place.coordinator}, ended before all had joined: start all processes again"
        )
        os._exit(PeerLost.code)

    # `Watchdog` checks whether the others are alive: JAX's own heartbeat would end the process with
    # a stack trace, and its preemption service would take SIGTERM away from `PreemptionHandler`.
    jax.config.update("jax_enable_preemption_service", False)
    kv_store.on_abort(give_up)
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.count,
            process_id=place.process,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=JOINING,
            heartbeat_timeout_seconds=24 * 3600,
        )
    except (ValueError, RuntimeError, TypeError) as e:
        raise UserError(f"the processes of the run cannot be joined ({one_line(e)})") from e
    kv_store.attach()


def all_agree(here: bool) -> bool:
    """Returns whether `here` is true in every process; a barrier that all processes call."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.int32(here))))


def broadcast_from_main(value: Any) -> Any:
    """Returns process 0's value, a number or an array, in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(np.asarray(value))


def gather_rows(rows: np.ndarray, part: int) -> np.ndarray:
    """Gathers the rows of all shards of a batch, 32 bits wide; all processes call it together.

    Args:
      rows: rows of this process's shard.
      part: index of that shard; several processes can have the same one.
    """
    from jax.experimental import multihost_utils

    parts, all_of_them = multihost_utils.process_allgather((np.int32(part), rows))
    found = dict(zip(parts.tolist(), all_of_them, strict=True))
    return np.concatenate([found[part] for part in sorted(found)])


class DelayedVote:
    """Asynchronous vote: whether any process votes yes, known one step late, without waiting."""

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
        """Casts this step's vote; returns the result of the previous step."""
        votes = jax.make_array_from_process_local_data(self._split, np.array([here], np.int32))
        verdict, self._pending = self._pending, self._any(votes)
        return verdict is not None and int(verdict) > 0
