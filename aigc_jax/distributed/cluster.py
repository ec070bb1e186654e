"""Resolves the index, number and coordinator of the processes of a run: by flags or detection.

JAX detects TPU pods (by metadata), SLURM (inside `srun`) and Open MPI; added here are indexed Jobs
of Kubernetes with the coordinator in the environment.
"""

import dataclasses
import glob
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any, Protocol

from aigc_jax.core.errors import UserError, one_line

LOCAL = (
    "AIGC_LOCAL_PROCESS",
    "AIGC_LOCAL_PROCESSES",
)  # set by launch/local.py: index and number on this machine
FLAGS = "give --coordinator=HOST:PORT, --num_processes and --process_id"


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Identity of a process in its run.

    Attributes:
      coordinator: HOST:PORT of process 0.
      count: number of processes.
      process: index of this process.
      devices: indices of its own GPUs among the visible ones; None: all.
    """

    coordinator: str
    count: int
    process: int
    devices: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The coordinator's host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Cluster(Protocol):
    """Common interface of JAX's `ClusterEnv` classes and ours."""

    name: str

    def get_coordinator_address(
        self, timeout_secs: int | None, override_coordinator_port: str | None
    ) -> str: ...

    def get_process_count(self) -> int: ...

    def get_process_id(self) -> int: ...


def resolve_process(
    coordinator: str | None, count: int | None, process: int | None, seconds: int
) -> ProcessInfo | None:
    """Returns the identity of this process; None for a run of one process.

    Args:
      coordinator: HOST:PORT, "auto" if a cluster must be detected, "none" to detect nothing; None:
        detected where possible.
      count: number of processes; None: detected.
      process: index of this process; None: detected.
      seconds: time to look for the coordinator's host.

    Raises:
      UserError: if a part is missing or wrong.
    """
    given = (count, process) != (None, None)
    if coordinator == "none":
        if given:
            raise UserError("--coordinator=none is for a run of one process: leave out the others")
        return None
    address = None if coordinator in (None, "auto") else coordinator
    cluster = None
    if None in (address, count, process):
        cluster = detect_cluster(os.environ)
        if cluster is None:
            if coordinator is None and not given:
                return None
            raise UserError(
                f"the processes of the run cannot be joined: no cluster was detected: {FLAGS}"
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
        except Exception as e:  # JAX's detection raises errors of many types
            raise UserError(
                f"{cluster.name} was detected, but not the index of this process ({one_line(e)}):"
                f" {FLAGS}, or --coordinator=none for a run of one process"
            ) from e
    if count is None or count < 1 or process is None or not 0 <= process < count:
        raise UserError(f"there is no process {process} of {count}: {FLAGS}")
    if count == 1:
        return None
    if not re.fullmatch(r".+:\d{1,5}", address or ""):
        raise UserError(f"--coordinator={address} is not HOST:PORT: name the host of process 0")
    launched = cluster is not None or os.environ.keys() >= set(LOCAL)
    return ProcessInfo(
        address or "", count, process, local_device_ids(os.environ) if launched else None
    )


def detect_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster that started this process; None if none is detected."""
    # They have no public names; `jax.distributed.initialize` imports them from here too.
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
    """Casts one of JAX's classes, whose methods are class methods."""
    return cluster


class KubernetesIndex:
    """Job with `completionMode: Indexed` and the rest in its manifest: `launch/gke_jobset.yaml`.

    JAX can detect the rest by itself, but needs permissions for the Kubernetes API.
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
    """Open MPI ≥ 5, which does not provide the host of process 0."""

    name = "Open MPI"

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def get_coordinator_address(self, timeout_secs: int | None, port: str | None) -> str:
        raise UserError(
            "Open MPI does not provide the host of process 0: give --coordinator=HOST:PORT, or"
            " install"
            " mpi4py"
        )

    def get_process_count(self) -> int:
        return int(self._environment["OMPI_COMM_WORLD_SIZE"])

    def get_process_id(self) -> int:
        return int(self._environment["OMPI_COMM_WORLD_RANK"])


def local_device_ids(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns indices of the process's own GPUs among the visible ones; None: all.

    Processes on one machine share its GPUs evenly. (JAX would give each a single one, even a
    process that is the only one on its machine.)
    """
    index, count = _local_rank(environment)
    if count == 1 or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if LOCAL[0] not in environment and _has_own_gpus(environment):
        return None
    share = _visible(environment) // count
    # Fewer GPUs than processes: the launcher has assigned them already, or there are none.
    return tuple(range(index * share, (index + 1) * share)) or None


def _visible(environment: Mapping[str, str]) -> int:
    """Returns the number of visible GPUs."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return len(glob.glob("/dev/nvidia[0-9]*")) if visible is None else len(visible.split(","))


def _has_own_gpus(environment: Mapping[str, str]) -> bool:
    """Returns whether SLURM has assigned GPUs to this process alone."""
    binding = environment.get("SLURM_GPU_BIND", "none")
    if "SLURM_GPUS_PER_TASK" in environment or not binding.endswith("none"):
        return True
    step = environment.get("SLURM_STEP_GPUS", "")  # of all tasks of the step on this machine
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return bool(step)
    node = environment.get("SLURM_GPUS_ON_NODE", "")
    number = len(step.split(",")) if step else int(node) if node.isdigit() else 0
    return _visible(environment) < number


def _local_rank(environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns (index, number) of this process among those on its machine."""
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
