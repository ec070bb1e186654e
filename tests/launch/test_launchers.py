"""The launchers: several processes here, a TPU slice, Kubernetes. (SLURM: test_slurm.py.)"""

import os
import shlex
import signal
import subprocess
import sys

import pytest
import yaml
from helpers import runs
from helpers.paths import LAUNCH

from aigc_jax.cli import flags
from aigc_jax.core.errors import NotFinite, OutOfMemory, PeerLost, Stopped, StorageError, UserError
from aigc_jax.distributed.cluster import KubernetesIndex

# launch/local.py ----------------------------------------------------------------------------------


def start(script, number=3, **options):
    """`launch/local.py` with a small program that is given the flags of a process."""
    command = [sys.executable, str(LAUNCH / "local.py"), "-n", str(number), "--"]
    command += [sys.executable, "-c", script, "--", "x"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, **pipes, **options)


def outcome(script, number=3):
    with start(script, number) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out.splitlines(), err


def test_each_process_gets_its_rank_and_its_lines_a_prefix():
    code, lines, _ = outcome("import sys; print(*sys.argv[1:]); print('end')")
    assert code == 0 and len(lines) == 6
    told = sorted(line for line in lines if not line.endswith("end"))
    coordinators = {line.split()[3] for line in told}
    assert len(coordinators) == 1 and "--coordinator=localhost:" in coordinators.pop()
    for i, line in enumerate(told):
        assert line.startswith(f"[{i}] -- x "), "the second -- is the command's own"
        assert line.endswith(f"--num_processes=3 --process_id={i}")


def test_one_that_fails_ends_all():
    # GRACE is for the others to find out by themselves.
    script = f"""
import sys
sys.path.insert(0, {str(LAUNCH)!r})
import local
local.GRACE = 0.5
child = "import sys, time; sys.exit(7) if '=1' in sys.argv[-1] else time.sleep(1000)"
sys.exit(local.main(["-n", "3", "--", sys.executable, "-c", child]))
"""
    with runs.no_hang(60):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 7
    assert "process 1 has failed (exit 7)" in done.stderr


WAITING = """
import signal, sys, time
def leave(number, frame):
    print("signal", number, flush=True)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, leave)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_all(number):
    with start(WAITING, 2) as process:
        ready = [process.stdout.readline() for _ in range(2)]
        assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert sorted(out.splitlines()) == [f"[{i}] signal {int(number)}" for i in range(2)]
    assert "has failed" not in err, "it was asked to stop"


def test_failed_start_is_one_line():
    command = [sys.executable, str(LAUNCH / "local.py"), "-n2"]
    for words, message in ((["--", "no-such-command"], "cannot be started"), ([], "write: ")):
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr
        assert "Traceback" not in done.stderr


def test_gpus_are_shared_out():
    script = """
import os
from aigc_jax.distributed.cluster import resolve_process
print(resolve_process("a:1", 3, 0, 1).devices)
"""
    own = {k: v for k, v in os.environ.items() if k != "JAX_LOCAL_DEVICE_IDS"}
    with start(script, env={**own, "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"}) as process:
        out, _ = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["[0] (0, 1)", "[1] (2, 3)", "[2] (4, 5)"]


# launch/tpu_pod.sh --------------------------------------------------------------------------------

FAKE = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["CALLS"], "a") as f:
    f.write(json.dumps(sys.argv) + "\\n")
"""
OPTIONS = ["--name=pod", "--zone=us-east5-a", "--project=p", "--create=v5litepod-16", "--spot"]
OPTIONS += ["--bucket=b", "--delete"]
RUN = ["--config=configs/lm/quickstart.py", "--workdir=/mnt/aigc/my run"]


def tpu_pod(*words, **environment):
    command = ["bash", str(LAUNCH / "tpu_pod.sh"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def commands(out):
    return [shlex.split(line) for line in out.splitlines()]


def test_a_dry_run_prints_what_it_would_do():
    done = tpu_pod(*OPTIONS, "--dry_run", "--", *RUN, CALLS="/nowhere")
    assert done.returncode == 0, done.stderr
    found = commands(done.stdout)
    verbs = [words[4] for words in found if words[0] == "gcloud"]
    assert verbs == ["create", "scp", "ssh", "ssh", "ssh", "delete"]
    for words in found:
        if words[0] == "gcloud":
            assert words[1:4] == ["compute", "tpus", "tpu-vm"] and "pod" in words[5] + words[6]
            assert "--zone=us-east5-a" in words and "--project=p" in words
            assert ("--worker=all" in words) == (words[4] in ("scp", "ssh"))
    remote = [w.removeprefix("--command=") for words in found for w in words if "--command=" in w]
    for command in remote:
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
    assert "[tpu]" in remote[0] and "gcsfuse" in remote[1]
    words = shlex.split(remote[2])
    start = words.index("train")
    assert words[start + 1 : start + 3] == RUN, "a space in a path stays where it is"


def test_a_real_run_does_what_a_dry_run_prints(tmp_path):
    (tmp_path / "gcloud").write_text(FAKE)
    (tmp_path / "gcloud").chmod(0o755)
    calls = tmp_path / "calls"
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = tpu_pod(*OPTIONS, "--no_install", "--", *RUN, PATH=path, CALLS=str(calls))
    assert done.returncode == 0, done.stderr
    printed = [words[1:] for words in commands(done.stdout)]
    assert [yaml.safe_load(line)[1:] for line in calls.read_text().splitlines()] == printed
    assert len(printed) == 4


@pytest.mark.parametrize("words", [[], ["--name=a"], ["--nmae=a"], ["--name=a", "--zone=b"]])
def test_a_wrong_call_is_refused(words):
    done = tpu_pod(*words)
    assert done.returncode == 2 and done.stderr.startswith("tpu_pod.sh: ")


def test_host_work_waits_for_training(tmp_path):
    """The last command, run here: the exit status is that of the training, its output is shown."""
    done = tpu_pod("--name=a", "--zone=b", "--no_install", "--dry_run", "--", "--config=c d")
    (words,) = commands(done.stdout)
    command = words[-1].removeprefix("--command=")
    program = tmp_path / "aigc" / ".venv" / "bin" / "aigc"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "run: $@"\nsleep 0.3\nexit 75\n')
    program.chmod(0o755)
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=home, capture_output=True, text=True
    )
    assert done.returncode == 75, done.stderr
    assert "run: train --config=c d" in done.stdout


# launch/gke_jobset.yaml ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobset():
    (document,) = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    return document


def test_the_jobset_starts_one_process_per_host_that_finds_the_others(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (train,) = jobset["spec"]["replicatedJobs"]
    job = train["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    (container,) = job["template"]["spec"]["containers"]
    told = {e["name"]: e["value"] for e in container["env"]}
    assert {*told, "JOB_COMPLETION_INDEX"} == KubernetesIndex.NEEDS
    assert told["JAX_NUM_PROCESSES"] == str(job["parallelism"] * train["replicas"])
    # The address that the headless service gives to process 0.
    host, _, port = told["JAX_COORDINATOR_ADDRESS"].partition(":")
    network = jobset["spec"]["network"]
    name = jobset["metadata"]["name"]
    assert host == f"{name}-{train['name']}-0-0.{network['subdomain']}"
    assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
    assert int(port) in [p["containerPort"] for p in container["ports"]]


def test_the_jobset_runs_a_command_that_there_is(jobset):
    (container,) = pod(jobset)["containers"]
    assert container["command"] == ["aigc", "train"]
    command = flags.COMMANDS["train"]
    given = [word.removeprefix("--").partition("=")[0] for word in container["args"]]
    assert set(command.required) <= set(given) <= set(command.flags)


def test_the_jobset_keeps_the_workdir_in_the_bucket(jobset):
    spec = pod(jobset)
    (container,) = spec["containers"]
    (mount,) = container["volumeMounts"]
    (volume,) = spec["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert any(word.startswith(f"--workdir={mount['mountPath']}/") for word in container["args"])


def test_the_jobset_starts_again_unless_a_person_is_needed(jobset):
    policy = jobset["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] > 0
    (job,) = (j["template"]["spec"] for j in jobset["spec"]["replicatedJobs"])
    assert job["backoffLimit"] == 0, "one process alone is not started again"
    assert pod(jobset)["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    assert pod(jobset)["terminationGracePeriodSeconds"] >= 60
    (final,) = job["podFailurePolicy"]["rules"]
    assert final["action"] == "FailJob"
    needs_person = {e.code for e in (UserError, NotFinite, OutOfMemory, StorageError)}
    assert set(final["onExitCodes"]["values"]) == needs_person
    assert not needs_person & {PeerLost.code, Stopped.code}


def pod(jobset):
    (train,) = jobset["spec"]["replicatedJobs"]
    return train["template"]["spec"]["template"]["spec"]
