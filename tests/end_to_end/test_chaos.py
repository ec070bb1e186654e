"""Runs killed at any instant end where the undisturbed run ends, in one process and in two.

`launch/chaos.py` does the killing; `-m slow` has every family killed more often.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import tiny
from helpers.paths import LAUNCH, TESTS

import aigc_jax
from aigc_jax.core.workdir import checkpoint_steps

CONFIG = """
import sys
sys.path.insert(0, {here!r})
from helpers import tiny

def get_config():
    return tiny.recipe(
        {family!r},
        train=dict(steps=240, log_every=16),
        eval=dict(every=60, batches=4),
        sample=dict(every=80),
        checkpoint=dict(every=40),
        mesh="data=-1",
        watchdog=dict(peer_timeout=10),
    )
"""


@pytest.fixture(scope="module")
def chaos():
    sys.path.insert(0, str(LAUNCH))  # for launch/local.py, which it imports
    spec = importlib.util.spec_from_file_location("chaos", LAUNCH / "chaos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path):
    def write(family, more=""):
        path = tmp_path / f"{family}.py"
        path.write_text(CONFIG.format(here=str(TESTS), family=family) + more)
        return str(path)

    return write


def survives(chaos, config, tmp_path, family, kills, seed, processes=1, signals="KILL", steps=240):
    arguments = [f"--config={config(family)}", f"--workdir={tmp_path / 'chaos'}"]
    arguments += [f"--kills={kills}", f"--seed={seed}", f"--processes={processes}"]
    arguments += [f"--signals={signals}", f"--config.train.steps={steps}"]
    assert chaos.main(arguments) == 0


def test_a_run_killed_at_random_instants(chaos, config, tmp_path, capsys):
    survives(chaos, config, tmp_path, "lm", kills=4, seed=0, signals="KILL,KILL,TERM")
    out = capsys.readouterr().out
    assert out.count("SIG") == 4, "each kill point is printed"
    # The tool would see it if something were different.
    with open(tmp_path / "chaos" / "killed" / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write('{"step": 240, "kind": "train"}\n')
    assert chaos.compare(str(tmp_path / "chaos" / "whole"), str(tmp_path / "chaos" / "killed"))


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(chaos, config, tmp_path):
    survives(chaos, config, tmp_path, "lm", kills=1, seed=5, processes=2, steps=120)
    # What two processes have saved, one goes on with. Its arrays are checked by fingerprint.
    _, state, step = aigc_jax.restore(str(tmp_path / "chaos" / "killed"))
    assert step == int(state.step) == 120


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_family_killed_often(chaos, config, tmp_path, family, processes):
    kills = 20 if processes == 1 else 8
    survives(chaos, config, tmp_path, family, kills, 1, processes, "KILL,KILL,TERM,INT")


@pytest.fixture
def start_two(chaos, tmp_path):
    """Starts two processes of an endless run, none of which outlives the test."""
    started = []

    def start(config_file, *flags):
        log = open(tmp_path / "log.txt", "w+", encoding="utf-8")  # noqa: SIM115
        command = [sys.executable, "-m", "aigc_jax.main", "train", f"--config={config_file}"]
        command += [f"--workdir={tmp_path / 'w'}", "--config.train.steps=100000", *flags]
        processes = chaos.local.start(command, 2, stdout=log, stderr=log)
        started.extend(processes)
        return processes, log

    yield start
    for process in started:
        process.kill()


def wait_for(condition, processes, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert all(p.poll() is None for p in processes), "a process ended too early"
        assert time.monotonic() < until
        time.sleep(0.05)


def end(processes, log, seconds=60):
    try:
        codes = [p.wait(seconds) for p in processes]
    except subprocess.TimeoutExpired:
        pytest.fail("a process hangs")
    finally:
        for p in processes:
            p.kill()
    log.seek(0)
    return codes, log.read()


def test_one_process_of_two_is_asked_to_stop(start_two, config, tmp_path):
    """Both save the same step and leave with the same code."""
    processes, log = start_two(config("lm"))
    wait_for(lambda: checkpoint_steps(str(tmp_path / "w")), processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, text = end(processes, log)
    assert codes == [75, 75], text
    _, state, step = aigc_jax.restore(str(tmp_path / "w"))
    assert int(state.step) == step > 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_is_named(start_two, config, tmp_path, victim, number):
    processes, log = start_two(config("lm"), "--config.watchdog.peer_timeout=4")
    wait_for(lambda: checkpoint_steps(str(tmp_path / "w")), processes)
    processes[victim].send_signal(number)
    code = processes[1 - victim].wait(60)
    processes[victim].kill()
    _, text = end(processes, log)
    assert code == 69
    assert f"error: process {victim} (pid {processes[victim].pid} on {os.uname().nodename})" in text
    assert "start all processes again" in text


@pytest.mark.slow
def test_a_process_that_is_stuck_is_named(start_two, config):
    stuck = "--config.watchdog.stuck_timeout=4"
    processes, log = start_two(config("lm", STUCK), stuck)
    codes, text = end(processes, log, 120)
    assert codes == [69, 69]
    assert "process 1 (pid" in text
    assert "is behind the others, in reading the data of step 41" in text


STUCK = """
import time
from aigc_jax.data.loader import DataLoader
inner = DataLoader.next
def wait_for_ever(self, state=None):
    if self.taken == 40 and "--process_id=1" in sys.argv:
        time.sleep(1000)
    return inner(self)
DataLoader.next = wait_for_ever
"""
