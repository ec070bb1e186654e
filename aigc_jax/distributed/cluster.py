"""Resolves index and coordinator of a process, from flags or from the launcher.

JAX detects TPU pods (by metadata), SLURM (inside `srun`) and Open MPI; this module adds indexed
Kubernetes Jobs with the coordinator in the environment.
"""

import dataclasses
import glob
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any, Protocol

from aigc_jax.core.errors import UserError, one_line

LOCAL = ("AIGC_LOCAL_PROCESS", "AIGC_LOCAL_PROCESSES")  # set by launch/local.py: index and number
FLAGS = "set --coordinator=HOST:PORT, --num_processes and --process_id"


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Index of a process and coordinator of its run.

    Attributes:
      coordinator: HOST:PORT of process 0.
      count: number of processes.
      process: index of this process.
      devices: indices of its GPUs among the visible ones; None for all.
    """

    coordinator: str
    count: int
    process: int
    devices: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Returns the coordinator's host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Cluster(Protocol):
    """Common interface of JAX's `ClusterEnv` classes and those here."""

    name: str

    def get_coordinator_address(
        self, timeout_secs: int | None, override_coordinator_port: str | None
    ) -> str: ...

    def get_process_count(self) -> int: ...

    def get_process_id(self) -> int: ...


def resolve_process(
    coordinator: str | None, count: int | None, process: int | None, seconds: int
) -> ProcessInfo | None:
    """Resolves the process info; None for a run of one process.

    Args:
      coordinator: HOST:PORT; "auto" requires detection, "none" forbids it; by default a detected
        cluster is used.
      count: number of processes; detected by default.
      process: index of this process; detected by default.
      seconds: timeout for resolving the coordinator's host.

    Raises:
      UserError: if a value is missing or invalid.
    """
    given = (count, process) != (None, None)
    if coordinator == "none":
        if given:
            raise UserError(
                "--coordinator=none is for a run of one process: omit --num_processes"
                " and --process_id"
            )
        return None
    address = None if coordinator in (None, "auto") else coordinator
    cluster = None
    if None in (address, count, process):
        cluster = detect_cluster(os.environ)
        if cluster is None:
            if coordinator is None and not given:
                return None
            raise UserError(
                f"the processes of the run cannot be joined: no cluster was detected; {FLAGS}"
            )
        try:
            count = cluster.get_process_count() if count is None else count
            process = cluster.get_process_id() if process is None else process
            if count > 1 and address is None:
                port = os.environ.get("JAX_COORDINATOR_PORT")
                address = os.environ.get(
                    "JAX_COORDINATOR_ADDRESS"
                ) or cluster.get_coordinator_address(seconds, port)
        except UserError:
            raise
        except Exception as e:  # JAX's detection raises many types
            raise UserError(
                f"{cluster.name} seems to have started this process, but its index or coordinator"
                f" cannot be detected ({one_line(e)}): {FLAGS}, or --coordinator=none for a run of"
                " one process"
            ) from e
    if count is None or count < 1 or process is None or not 0 <= process < count:
        raise UserError(f"there is no process {process} of {count}: {FLAGS}")
    if count == 1:
        return None
    if not re.fullmatch(r".+:\d{1,5}", address or ""):
        raise UserError(
            f"--coordinator={address} is not HOST:PORT: set it to the host of process 0"
        )
    launched = cluster is not None or os.environ.keys() >= set(LOCAL)
    return ProcessInfo(
        address or "", count, process, local_device_ids(os.environ) if launched else None
    )


def detect_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster environment of this process; None if none is detected."""
    # Private API of JAX, which `jax.distributed.initialize` uses too: there is no public one.
    from jax._src import clusters

    if "OMPI_COMM_WORLD_SIZE" in environment and "OMPI_MCA_orte_hnp_uri" not in environment:
        mpi = importlib.util.find_spec("mpi4py")
        return as_cluster(clusters.Mpi4pyCluster) if mpi else OpenMpi5(environment)
    known = [
        clusters.OmpiCluster,
        clusters.SlurmCluster,
        clusters.GkeTpuCluster,
        clusters.GceTpuCluster,
    ]
    for cluster in known:
        if cluster.is_env_present():
            return as_cluster(cluster)
    if environment.keys() >= KubernetesIndex.NEEDS:
        return KubernetesIndex(environment)
    return None


def as_cluster(cluster: Any) -> Cluster:
    """Casts JAX's classes, whose class methods implement the protocol, for the type checker."""
    return cluster


class KubernetesIndex:
    """Job with `completionMode: Indexed`, configured by its manifest: `launch/gke_jobset.yaml`.

    JAX's own detection needs permissions for the Kubernetes API.
    """

    name = "Kubernetes"
    NEEDS = frozenset({"JOB_COMPLETION_INDEX", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES"})

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def get_coordinator_address(self, timeout_secs: int | None, port: str | None) -> str:
        return self._environment["JAX_COORDINATOR_ADDRESS"]

    def get_process_count(self) -> int:
        return int(self._environment["JAX_NUM_PROCESSES"])

    def get_process_id(self) -> int:
        return int(self._environment["JOB_COMPLETION_INDEX"])


class OpenMpi5:
    """Open MPI 5 or newer, which does not publish the host of process 0."""

    name = "Open MPI"

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def get_coordinator_address(self, timeout_secs: int | None, port: str | None) -> str:
        raise UserError(
            "Open MPI does not publish the host of process 0: set --coordinator=HOST:PORT, or"
            " install mpi4py"
        )

    def get_process_count(self) -> int:
        return int(self._environment["OMPI_COMM_WORLD_SIZE"])

    def get_process_id(self) -> int:
        return int(self._environment["OMPI_COMM_WORLD_RANK"])


def local_device_ids(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns the indices of this process's GPUs among the visible ones; None for all.

    Processes on one machine share its GPUs evenly. (JAX would assign a single GPU to each process,
    even to the only one on a machine.)
    """
    local, local_count = _local_index(environment)
    if local_count == 1 or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if LOCAL[0] not in environment and _has_bound_gpus(environment):
        return None
    share = _num_visible_gpus(environment) // local_count
    # Fewer GPUs than processes: the launcher has assigned them already, or there are none.
    return tuple(range(local * share, (local + 1) * share)) or None


def _num_visible_gpus(environment: Mapping[str, str]) -> int:
    """Returns the number of GPUs visible to a process."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return len(glob.glob("/dev/nvidia[0-9]*")) if visible is None else len(visible.split(","))


def _has_bound_gpus(environment: Mapping[str, str]) -> bool:
    """Returns whether SLURM has bound GPUs to this process."""
    binding = environment.get("SLURM_GPU_BIND", "none")
    if "SLURM_GPUS_PER_TASK" in environment or not binding.endswith("none"):
        return True
    step = environment.get("SLURM_STEP_GPUS", "")  # of all tasks of the step on this machine
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return bool(step)
    node = environment.get("SLURM_GPUS_ON_NODE", "")
    number = len(step.split(",")) if step else int(node) if node.isdigit() else 0
    return _num_visible_gpus(environment) < number


def _local_index(environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns the local index of this process on its machine and the local number of processes."""
    if environment.keys() >= set(LOCAL):
        number, count = LOCAL
        return int(environment[number]), int(environment[count])
    if "OMPI_COMM_WORLD_LOCAL_SIZE" in environment:
        return (
            int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),
            int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"]),
        )
    if "SLURM_STEP_TASKS_PER_NODE" in environment and "SLURM_LOCALID" in environment:
        counts: list[int] = []
        for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):  # such as 2(x3),1
            number, _, times = part.partition("(x")
            counts += [int(number)] * int(times.rstrip(")") or 1)
        node = int(environment.get("SLURM_NODEID", 0))
        return int(environment["SLURM_LOCALID"]), counts[min(node, len(counts) - 1)]
    return 0, 1
