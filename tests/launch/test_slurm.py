"""`launch/slurm.sbatch` under a real SLURM: a controller and a node on this machine.

`-m slow`. SLURM and munge are installed from Debian where they are missing and this is root; all
else (configuration, keys, state) lies in the test's own folder, and every daemon ends with it.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from helpers import runs
from helpers.paths import ROOT

pytestmark = pytest.mark.slow
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from helpers import tiny

def get_config():
    return tiny.recipe(
        "vae", mesh="data=-1", train=dict(steps={steps}, log_every=10),
        eval=dict(every={steps}, batches=1), checkpoint=dict(every={steps})
    )
"""


def install():
    """SLURM from Debian; skips where that is not possible."""
    # slurm*d* and munged lie where only root looks.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if os.geteuid():
        pytest.skip("SLURM's daemons need root")
    if all(shutil.which(name) for name in PROGRAMS):
        return
    if not shutil.which("apt-get"):
        pytest.skip("SLURM is not installed, and there is no apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "slurm-wlm", "munge"]):
        done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"SLURM cannot be installed: {done.stderr.strip()[-200:]}")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("localhost", 0))
        return [s.getsockname()[1] for s in sockets]


class Slurm:
    """A cluster of this machine, for as long as the block lasts."""

    def __init__(self, folder):
        self.folder, self.host = folder, socket.gethostname().partition(".")[0]
        self._daemons = []

    def __enter__(self):
        # Commands and jobs find the cluster by its configuration.
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        conf = SLURM_CONF.format(host=self.host, folder=self.folder, ports=free_ports(2))
        (self.folder / "slurm.conf").write_text(conf)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        try:
            self._start(
                "munged", "--foreground", "--force", f"--key-file={key}",
                f"--socket={munge['socket']}", f"--pid-file={munge['pid']}",
                f"--log-file={munge['log']}", f"--seed-file={munge['seed']}",
            )  # fmt: skip
            self.until(munge["socket"].exists)
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D", "-N", self.host)
            self.until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%t"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["scancel", "--user=root"], capture_output=True, timeout=20)
            self.until(lambda: not self.ask("squeue", "-h"), 30)
        for process in reversed(self._daemons):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        os.environ.pop("SLURM_CONF", None)

    def _start(self, *command):
        with open(self.folder / f"{command[0]}.out", "wb") as log:
            self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log))

    def until(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = "".join(p.read_text()[-1500:] for p in self.folder.glob("slurm*.log"))
                raise TimeoutError(logs)
            time.sleep(0.2)

    def ask(self, *command):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    def state(self, job):
        shown = self.ask("scontrol", "show", "job", job, "-o")
        fields = dict(w.split("=", 1) for w in shown.split() if "=" in w)
        return fields.get("JobState", "GONE"), fields

    def submit(self, *words, **environment):
        done = subprocess.run(
            ["sbatch", "--parsable", *words], capture_output=True, text=True, check=False,
            env={**os.environ, **environment}, cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    install()
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def submit(slurm, tmp_path):
    """Submits a run of two processes; returns the job, its log and its workdir."""
    command = tmp_path / "aigc"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m aigc_jax.main "$@"\n')
    command.chmod(0o755)

    def call(steps, *flags):
        config = tmp_path / "config.py"
        config.write_text(CONFIG.format(tests=str(ROOT / "tests"), steps=steps))
        log, workdir = tmp_path / "log.txt", tmp_path / "w"
        job = slurm.submit(
            "--nodes=1", "--ntasks-per-node=2", f"--output={log}",
            str(ROOT / "launch" / "slurm.sbatch"), str(config), str(workdir), *flags,
            AIGC=str(command), PYTHONPATH=str(ROOT), JAX_NUM_CPU_DEVICES="2",
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        )  # fmt: skip
        return job, log, workdir

    return call


def test_a_job_of_two_processes(slurm, submit):
    job, log, workdir = submit(20)
    slurm.until(lambda: slurm.state(job)[0] in ("COMPLETED", "FAILED", "CANCELLED"), 500)
    assert slurm.state(job)[0] == "COMPLETED", log.read_text()
    assert "trained: " in log.read_text() and log.read_text().count("trained: ") == 1
    assert runs.steps_of(workdir) == [10, 20]
    assert runs.steps_of(workdir, "eval") == [20]


def test_a_job_whose_time_is_nearly_up_saves_and_is_queued_again(slurm, submit):
    job, log, workdir = submit(20000)
    slurm.until(lambda: runs.steps_of(workdir) if workdir.exists() else [], 500)
    # What SLURM sends two minutes before the end.
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    slurm.until(lambda: slurm.state(job)[1].get("Restarts") == "1", 300)
    text = log.read_text()
    assert "stopped after step" in text and "asked to stop: into the queue again" in text
    saved = json.loads((workdir / "saved.json").read_text())["step"]
    slurm.until(lambda: f"resuming after step {saved}" in log.read_text(), 500)
    subprocess.run(["scancel", job], check=True)


def test_an_error_that_a_person_must_mend_ends_the_job(slurm, submit):
    job, log, _ = submit(20, "--config.data.batch_size=63")
    slurm.until(lambda: slurm.state(job)[0] in ("COMPLETED", "FAILED", "CANCELLED"), 500)
    state, fields = slurm.state(job)
    assert state == "FAILED" and fields["ExitCode"] == "2:0" and fields["Restarts"] == "0"
    assert "aigc: error: " in log.read_text()
