"""Which process of which run this is: from flags, or from what started it.

JAX knows TPU pods (their metadata), SLURM (inside `srun`) and Open MPI; this asks it, and adds
indexed Jobs of Kubernetes that say their coordinator in the environment.
"""

import dataclasses
import glob
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any, Protocol

from aigc_jax.core.errors import UserError, one_line

LOCAL = ("AIGC_LOCAL_PROCESS", "AIGC_LOCAL_PROCESSES")  # launch/local.py: which one of how many
FLAGS = "give --coordinator=HOST:PORT, --num_processes and --process_id"


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """A process's place among those of its run.

    Attributes:
      coordinator: HOST:PORT of process 0.
      count: how many processes there are.
      process: which of them this is, from 0.
      devices: which of the GPUs it sees are its own; none: all.
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
    """What JAX's `ClusterEnv` classes and ours have in common."""

    name: str

    def get_coordinator_address(
        self, timeout_secs: int | None, override_coordinator_port: str | None
    ) -> str: ...

    def get_process_count(self) -> int: ...

    def get_process_id(self) -> int: ...


def resolve_process(
    coordinator: str | None, count: int | None, process: int | None, seconds: int
) -> ProcessInfo | None:
    """This process's place; none if it is alone.

    Args:
      coordinator: HOST:PORT, "auto" where something must be detected, "none" where nothing may be;
        if left out, what is detected is used.
      count: how many processes; detected if left out.
      process: which one this is; detected if left out.
      seconds: how long to look for the coordinator's host.

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
                "the processes of the run cannot be joined, because this one runs under nothing"
                f" that tells its place: {FLAGS}"
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
        except Exception as e:  # whatever JAX's detection comes upon
            raise UserError(
                f"{cluster.name} seems to have started this process, but does not tell its place"
                f" ({one_line(e)}): {FLAGS}, or --coordinator=none if it is to run alone"
            ) from e
    if count is None or count < 1 or process is None or not 0 <= process < count:
        raise UserError(f"there is no process {process} of {count}: {FLAGS}")
    if count == 1:
        return None
    if not re.fullmatch(r".+:\d{1,5}", address or ""):
        raise UserError(f"--coordinator={address} is not HOST:PORT: name the host of process 0")
    told = cluster is not None or os.environ.keys() >= set(LOCAL)
    return ProcessInfo(
        address or "", count, process, local_device_ids(os.environ) if told else None
    )


def detect_cluster(environment: Mapping[str, str]) -> Cluster | None:
    """What started this process as one of several, if anything that is known did."""
    # There are no public names for them; `jax.distributed.initialize` takes them from here too.
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
    """JAX's classes are used without being instances."""
    return cluster


class KubernetesIndex:
    """A Job with `completionMode: Indexed`, whose manifest says the rest: `launch/gke_jobset.yaml`.

    JAX can find the rest by itself, but needs the rights to ask Kubernetes for it.
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
    """Open MPI from 5 on, which does not tell where its first process is."""

    name = "Open MPI"

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def get_coordinator_address(self, timeout_secs: int | None, port: str | None) -> str:
        raise UserError(
            "Open MPI does not tell where process 0 is: give --coordinator=HOST:PORT, or install"
            " mpi4py"
        )

    def get_process_count(self) -> int:
        return int(self._environment["OMPI_COMM_WORLD_SIZE"])

    def get_process_id(self) -> int:
        return int(self._environment["OMPI_COMM_WORLD_RANK"])


def local_device_ids(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Which of the GPUs that this process sees are its own; none: all.

    Processes side by side on a machine share its GPUs evenly. (JAX would give each a single one,
    and so a process that is alone on its machine too.)
    """
    local, beside = _beside(environment)
    if beside == 1 or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if LOCAL[0] not in environment and _bound(environment):
        return None
    share = _visible(environment) // beside
    # Fewer than processes: the launcher has given each its own already, or there are none.
    return tuple(range(local * share, (local + 1) * share)) or None


def _visible(environment: Mapping[str, str]) -> int:
    """How many GPUs a process sees."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return len(glob.glob("/dev/nvidia[0-9]*")) if visible is None else len(visible.split(","))


def _bound(environment: Mapping[str, str]) -> bool:
    """Whether SLURM has given this process GPUs of its own, among which nothing is to be shared."""
    binding = environment.get("SLURM_GPU_BIND", "none")
    if "SLURM_GPUS_PER_TASK" in environment or not binding.endswith("none"):
        return True
    step = environment.get("SLURM_STEP_GPUS", "")  # of all tasks of the step on this machine
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return bool(step)
    node = environment.get("SLURM_GPUS_ON_NODE", "")
    number = len(step.split(",")) if step else int(node) if node.isdigit() else 0
    return _visible(environment) < number


def _beside(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's number on its machine, and how many there are."""
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
