"""Finding one's place among the processes of a run, waiting for the others, and the network."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers import runs, tiny
from helpers.paths import ROOT

from aigc_jax.core.errors import PeerLost, UserError
from aigc_jax.distributed import allreduce_bench, cluster, rendezvous
from aigc_jax.distributed.cluster import ProcessInfo, local_device_ids, resolve_process
from aigc_jax.distributed.rendezvous import wait_for_all

sys.path.insert(0, str(ROOT / "launch"))
import local

# Where from -----------------------------------------------------------------------------------

SLURM = dict(SLURM_JOB_ID="4097", SLURM_STEP_NODELIST="n[3-5]", SLURM_NTASKS="6",
             SLURM_PROCID="4", SLURM_LOCALID="1")  # fmt: skip
OPEN_MPI = dict(OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
                OMPI_COMM_WORLD_SIZE="3", OMPI_COMM_WORLD_RANK="2",
                OMPI_COMM_WORLD_LOCAL_RANK="0", OMPI_COMM_WORLD_LOCAL_SIZE="1")  # fmt: skip
KUBERNETES = dict(JOB_COMPLETION_INDEX="1", JAX_NUM_PROCESSES="4",
                  JAX_COORDINATOR_ADDRESS="aigc-train-0-0.aigc:8476")  # fmt: skip
TPU = dict(TPU_WORKER_ID="1", TPU_WORKER_HOSTNAMES="localhost,localhost",
           MEGASCALE_COORDINATOR_ADDRESS="", MEGASCALE_NUM_SLICES="1",
           MEGASCALE_SLICE_ID="0")  # fmt: skip

TWO = dict(SLURM_STEP_TASKS_PER_NODE="2", SLURM_LOCALID="1")


@pytest.fixture
def environment(monkeypatch):
    """Sets variables of which none is left from around the tests."""
    for name in {*SLURM, *OPEN_MPI, *KUBERNETES, *TPU, "CUDA_VISIBLE_DEVICES"}:
        monkeypatch.delenv(name, raising=False)

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


def test_single_process_by_default(environment):
    assert resolve_process(None, None, None, 1) is None
    assert resolve_process("none", None, None, 1) is None
    environment(**KUBERNETES)
    assert resolve_process("none", None, None, 1) is None, "whatever the cluster says"
    assert resolve_process("a:1", 1, 0, 1) is None, "one process has nobody to join"


def test_flags_say_it(environment):
    assert resolve_process("host:12", 3, 2, 1) == ProcessInfo("host:12", 3, 2)
    assert resolve_process("[::1]:12", 3, 2, 1).address == ("::1", 12)
    environment(**KUBERNETES)
    assert resolve_process("host:12", 3, 2, 1) == ProcessInfo("host:12", 3, 2)
    assert resolve_process("host:12", None, None, 1) == ProcessInfo("host:12", 4, 1), (
        "and the rest is found"
    )


@pytest.mark.parametrize("coordinator", [None, "auto"])
@pytest.mark.parametrize(
    "variables, expected",
    [
        (SLURM, ProcessInfo("n3:61441", 6, 4)),
        (OPEN_MPI, ProcessInfo("10.96.0.1:62624", 3, 2)),
        (KUBERNETES, ProcessInfo("aigc-train-0-0.aigc:8476", 4, 1)),
    ],
    ids=["SLURM", "Open MPI", "Kubernetes"],
)
def test_cluster_is_detected(variables, expected, coordinator, environment):
    environment(**variables)
    assert resolve_process(coordinator, None, None, 1) == expected


def test_the_metadata_of_a_tpu_say_it(environment, monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    environment(**TPU)
    place = resolve_process(None, None, None, 1)
    assert (place.coordinator, place.count, place.process) == ("localhost:8482", 2, 1)


def test_a_step_of_one_task_is_alone(environment):
    environment(**{**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert resolve_process(None, None, None, 1) is None


def test_open_mpi_5_needs_a_coordinator(environment, monkeypatch):
    environment(**{k: v for k, v in OPEN_MPI.items() if k.startswith("OMPI_COMM")})
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--coordinator=.*mpi4py"):
        resolve_process(None, None, None, 1)
    assert resolve_process("host:12", None, None, 1) == ProcessInfo("host:12", 3, 2)


@pytest.mark.parametrize(
    "given, message",
    [
        (("auto", None, None), "no cluster was detected; set --coordinator"),
        ((None, 2, None), "no cluster was detected"),
        (("host:12", 2, None), "no cluster was detected"),
        (("host:12", 2, 2), "no process 2 of 2"),
        (("host:12", 0, 0), "no process 0 of 0"),
        (("host", 2, 1), "--coordinator=host is not HOST:PORT"),
        (("none", 2, 1), "omit --num_processes"),
    ],
)
def test_impossible_values_are_rejected(given, message, environment):
    with pytest.raises(UserError, match=message):
        resolve_process(*given, 1)


def test_invalid_cluster_variables_are_rejected(environment):
    environment(**{**SLURM, "SLURM_NTASKS": "many"})
    with pytest.raises(UserError, match=r"slurm.*--coordinator=none"):
        resolve_process(None, None, None, 1)


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, None),
        (dict(SLURM_STEP_TASKS_PER_NODE="1", SLURM_LOCALID="0"), None),
        (dict(SLURM_STEP_TASKS_PER_NODE="4(x2),1", SLURM_LOCALID="3"), (6, 7)),
        (dict(SLURM_STEP_TASKS_PER_NODE="4(x2),1", SLURM_LOCALID="0", SLURM_NODEID="2"), None),
        (dict(TWO, CUDA_VISIBLE_DEVICES="0,1,2,3"), (2, 3)),
        (dict(TWO, CUDA_VISIBLE_DEVICES="0,1,2,3", SLURM_STEP_GPUS="4,5,6,7",
              SLURM_GPUS_ON_NODE="4"), (2, 3)),
        (dict(TWO, SLURM_GPU_BIND="none"), (4, 5, 6, 7)),
        # SLURM has shared them out: by each task, by what was asked for, by what it let be seen
        (dict(TWO, CUDA_VISIBLE_DEVICES="5"), None),
        (dict(TWO, CUDA_VISIBLE_DEVICES="0,1", SLURM_GPUS_PER_TASK="2"), None),
        (dict(TWO, CUDA_VISIBLE_DEVICES="0,1", SLURM_GPU_BIND="verbose,closest"), None),
        (dict(TWO, CUDA_VISIBLE_DEVICES="0,1", SLURM_STEP_GPUS="0,1,2,3"), None),
        (dict(TWO, CUDA_VISIBLE_DEVICES="0,1", SLURM_GPUS_ON_NODE="4"), None),
        (dict(TWO, SLURM_STEP_GPUS="2,3"), None),
        (dict(OMPI_COMM_WORLD_LOCAL_SIZE="2", OMPI_COMM_WORLD_LOCAL_RANK="1"), (4, 5, 6, 7)),
        (dict(OMPI_COMM_WORLD_LOCAL_SIZE="16", OMPI_COMM_WORLD_LOCAL_RANK="1"), None),
    ],
)  # fmt: skip
def test_processes_side_by_side_share_the_gpus(variables, expected, monkeypatch):
    monkeypatch.setattr(cluster.glob, "glob", lambda pattern: ["/dev/nvidia0"] * 8)
    assert local_device_ids(variables) == expected


# The start-up barrier ---------------------------------------------------------------------------


def come(place, seconds, outcome):
    try:
        wait_for_all(place, seconds)
        outcome[place.process] = "met"
    except UserError as e:
        outcome[place.process] = e


def gathering(places, seconds=5.0):
    """What comes of processes that meet: "met" or an error, for each."""
    outcome = {}
    threads = [threading.Thread(target=come, args=(p, seconds, outcome)) for p in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return outcome


def at(port, count, process):
    return ProcessInfo(f"localhost:{port}", count, process)


def test_rendezvous_in_any_order():
    port = local.free_port()
    assert gathering([at(port, 4, p) for p in (3, 1, 0, 2)]) == dict.fromkeys(range(4), "met")
    # The port is free again: JAX's own service takes it.
    socket.create_server(("", port)).close()


def test_the_absent_are_named_to_all_that_are_there():
    port = local.free_port()
    outcome = gathering([at(port, 5, p) for p in (0, 2)], seconds=0.6)
    for process in (0, 2):
        assert isinstance(outcome[process], PeerLost)
        assert "processes 1, 3 and 4 of 5 have not arrived within 0.6 s" in str(outcome[process])


def connected(port):
    """A connection to who listens there, as soon as somebody does."""
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection(("localhost", port))


def test_a_process_that_has_left_again_is_absent():
    port = local.free_port()
    outcome = {}
    host = threading.Thread(target=come, args=(at(port, 3, 0), 1.5, outcome))
    host.start()
    visitor = connected(port)
    visitor.sendall(json.dumps({"process": 2, "count": 3, "name": "x"}).encode() + b"\n")
    visitor.close()
    come(at(port, 3, 1), 1.5, outcome)
    host.join()
    assert "processes 1 and 2" not in str(outcome[1])
    assert "process 2 of 3 has not arrived" in str(outcome[0])
    assert str(outcome[1]) == str(outcome[0])


def test_process_0_is_named_when_it_does_not_come():
    port = local.free_port()
    outcome = gathering([at(port, 2, 1)], seconds=0.3)
    assert isinstance(outcome[1], PeerLost)
    assert f"process 0 has not answered at localhost:{port}" in str(outcome[1])


def refused(place):
    with pytest.raises(UserError) as caught:
        wait_for_all(place, 1.0)
    assert type(caught.value) is UserError, "not one that is worth trying again"
    return str(caught.value)


def test_processes_with_different_arguments():
    port = local.free_port()
    outcome = {}
    host = threading.Thread(target=come, args=(at(port, 3, 0), 5.0, outcome))
    first = threading.Thread(target=come, args=(at(port, 3, 1), 5.0, outcome))
    for thread in (host, first):
        thread.start()
    assert "was started as one of 3, but pid" in refused(at(port, 4, 3))
    time.sleep(0.5)  # the first one is there
    assert "were both started as process 1" in refused(at(port, 3, 1))
    come(at(port, 3, 2), 5.0, outcome)
    for thread in (host, first):
        thread.join()
    assert outcome == dict.fromkeys(range(3), "met")


def test_unknown_peers_are_ignored():
    port = local.free_port()
    outcome = {}
    host = threading.Thread(target=come, args=(at(port, 2, 0), 5.0, outcome))
    host.start()
    stranger = connected(port)
    stranger.sendall(b"GET / HTTP/1.1\r\n\n")
    come(at(port, 2, 1), 5.0, outcome)
    host.join()
    stranger.close()
    assert outcome == {0: "met", 1: "met"}


def test_a_taken_port_is_refused():
    with socket.create_server(("", 0)) as server, pytest.raises(UserError, match="cannot listen"):
        wait_for_all(at(server.getsockname()[1], 2, 0), 1.0)


def test_many_absent_are_counted():
    assert rendezvous._names(list(range(1, 100))) == "processes 1, 2, 3, 4, 5, 6, 7, 8 and 91 more"


# The network ------------------------------------------------------------------------------------


def test_sums_of_all_sizes_are_right_and_timed(capsys):
    assert allreduce_bench.SIZES[0] == 1024 and allreduce_bench.SIZES[-1] == 64 * 2**20
    assert allreduce_bench.bench_allreduce((1024, 1 << 20)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("process 0: pid ") and "8 device(s)" in lines[0]
    assert "over 8 devices" in lines[1]
    for line, size in zip(lines[3:], ("1 KiB", "1 MiB"), strict=True):
        assert line.split()[:2] == size.split() and line.count("B/s") == 2


def test_bandwidths_are_those_of_the_formula(capsys, monkeypatch):
    found = [(4_000_000, 0.002, True), (4_000_000, 0.002, False)]
    monkeypatch.setattr(allreduce_bench, "time_allreduces", lambda sizes: found)
    assert allreduce_bench.bench_allreduce() == 1
    right, wrong = capsys.readouterr().out.splitlines()[-2:]
    assert right.split()[-4:] == ["2.00", "GB/s", "3.50", "GB/s"]  # 8 devices: 2 · 7 / 8
    assert wrong.endswith("WRONG SUM")


# In earnest -------------------------------------------------------------------------------------

CONFIG = """
import sys
sys.path.insert(0, {here!r})
from helpers import tiny

def get_config(family):
    # 365 held-out images in batches of 96: the last one is not full.
    return tiny.recipe(
        family, mesh="data=-1", train=dict(steps=6, log_every=1),
        eval=dict(every=3, batch_size=96, batches=0),
    )
"""


@pytest.fixture
def together(tmp_path, monkeypatch):
    """Runs `aigc` in several processes with 8 devices in all; returns what it printed."""

    def call(processes, *words):
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(8 // processes))
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        command = [sys.executable, str(ROOT / "launch" / "local.py"), f"-n{processes}", "--"]
        command += [sys.executable, "-m", "aigc_jax.main", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def not_of_process_0(out):
    """Lines of the others, but for what XLA says: of its connections, and of slow machines."""
    lines = [line for line in out.splitlines() if "Gloo" not in line and line[4:].strip()]
    lines = [line for line in lines if not re.match(r"[IWE]\d{4} ", line[4:])]
    return [line for line in lines if not line.startswith("[0] ")]


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_losses_do_not_depend_on_the_number_of_processes(family, together, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(here=str(ROOT / "tests")))
    found = []
    for processes in (1, 2, 4):
        workdir = tmp_path / str(processes)
        out = together(processes, "train", f"--config={path}:{family}", f"--workdir={workdir}")
        assert out and not_of_process_0(out) == []
        found.append(runs.records(workdir))
    one, *others = found
    assert [r["kind"] for r in one].count("eval") == 2
    for several in others:
        assert [(r["step"], r["kind"]) for r in several] == [(r["step"], r["kind"]) for r in one]
        for a, b in zip(one, several, strict=True):
            losses = {k: v for k, v in a.items() if k.split("/")[-1] == "loss"}
            assert losses and {k: b[k] for k in losses} == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
def test_the_doctor_times_the_network_between_processes(together):
    lines = together(2, "doctor", "--distributed").splitlines()
    spoken = [line for line in lines if "Gloo" not in line]
    assert all(line.startswith("[0] ") for line in spoken)
    assert [line[4:14] for line in spoken[:2]] == ["process 0:", "process 1:"]
    assert sum("B/s" in line for line in spoken) == len(allreduce_bench.SIZES)


@pytest.mark.slow
def test_common_error_is_reported_once(together, tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "local.py"), "-n2", "--", sys.executable]
    command += ["-m", "aigc_jax.main", "train", "--config=configs/vae/quickstart.py"]
    command += [f"--workdir={tmp_path}", "--config.data.batch_size=63"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("aigc: error:") == 1
    assert "process 1 has failed (exit 69)" not in done.stderr


@pytest.mark.slow
def test_error_of_one_process_ends_all_with_its_exit_status(tmp_path):
    """A scheduler that starts a lost process again must not do so with a wrong config."""
    command = [sys.executable, "-m", "aigc_jax.main", "train", f"--workdir={tmp_path}"]
    command += ["--config=configs/vae/quickstart.py"]
    address = f"--coordinator=localhost:{local.free_port()}"
    processes = [
        subprocess.Popen(
            [*command, f"--config.data.batch_size={size}", address, "--num_processes=2",
             f"--process_id={i}"],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for i, size in enumerate((64, 63))
    ]  # fmt: skip
    errors = [p.communicate(timeout=300)[1] for p in processes]
    assert [p.returncode for p in processes] == [2, 2]
    assert "process 1 (pid" in errors[0] and "must be divisible by" in errors[0]
