"""Processes of one run: joining them, and agreeing among them."""

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

JOINING = 60  # seconds in which JAX connects processes that are all there


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int
) -> None:
    """Joins the processes of a run, if it has several; must come before JAX is used.

    Args:
      coordinator: HOST:PORT of process 0, "auto" where the cluster must tell, "none" for a run of
        one process; if left out, what the cluster tells is used where there is one.
      num_processes: how many there are, if the cluster does not tell.
      process_id: which one this is, if the cluster does not tell.
      seconds: how long to wait for the others.

    Raises:
      PeerLost: if some do not come; it names them.
      UserError: if they cannot be joined.
    """
    place = resolve_process(coordinator, num_processes, process_id, seconds)
    if place is None:
        return
    wait_for_all(place, seconds)

    def give_up() -> None:
        write_stderr(
            "\naigc: error: another process of the run, or the coordinator at"
            f" {place.coordinator}, was gone before all had joined: start all processes again"
        )
        os._exit(PeerLost.code)

    # Whether the others are alive is `Monitor`'s concern: JAX's own heartbeat would end the process
    # with a stack trace. And its preemption service would take SIGTERM away from `Stop`.
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
    """Whether `here` is true in every process; all call it together, and wait for each other."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.int32(here))))


def broadcast_from_main(value: Any) -> Any:
    """Process 0's value, a number or an array of them, in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(np.asarray(value))


def gather_rows(rows: np.ndarray, part: int) -> np.ndarray:
    """The rows of all parts of a batch, 32 bits wide; all processes call it together.

    Args:
      rows: of this process's part.
      part: which part that is; several processes can have the same one.
    """
    from jax.experimental import multihost_utils

    parts, all_of_them = multihost_utils.process_allgather((np.int32(part), rows))
    found = dict(zip(parts.tolist(), all_of_them, strict=True))
    return np.concatenate([found[part] for part in sorted(found)])


class DelayedVote:
    """Whether any process wants something, told to all one step late, so that nobody waits."""

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
        """Hands in this step's vote; returns the verdict of the step before."""
        votes = jax.make_array_from_process_local_data(self._split, np.array([here], np.int32))
        verdict, self._pending = self._pending, self._any(votes)
        return verdict is not None and int(verdict) > 0
