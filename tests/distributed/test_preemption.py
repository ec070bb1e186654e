"""Requests to stop: what is done is saved, and the run goes on as if nobody had asked."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import runs, tiny
from helpers.paths import TESTS
from helpers.runs import final_state, records, steps_of, train

from aigc_jax.core.errors import Stopped
from aigc_jax.core.streams import UnbreakableStream
from aigc_jax.distributed.preemption import AGAIN, SIGNALS, PreemptionHandler
from aigc_jax.runs import hooks, trainer

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
WATCHED = dict(eval=dict(every=3), sample=dict(every=4))
SLOW = [pytest.param(f, marks=pytest.mark.slow) for f in ("lm", "gan", "diffusion")]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run of 6 steps that is evaluated after 3 and 6, and sampled from after 4 and 6."""
    workdir = tmp_path_factory.mktemp("watched") / "w"
    train("vae", workdir, **WATCHED)
    return workdir


def same_runs(a, b):
    runs.same_runs(a, b)
    pictures = [
        {path.name: path.read_bytes() for path in (w / "samples").iterdir()} for w in (a, b)
    ]
    assert pictures[0] == pictures[1]


# Requests ------------------------------------------------------------------------------------


def test_a_request_is_kept():
    stop = PreemptionHandler()
    assert not stop.requested and not stop.agreed()
    stop.request()
    assert stop.requested and stop.agreed() and stop.agreed()


def test_interruptible_phase_is_not_entered_after_a_request():
    stop, finished = PreemptionHandler(), []
    with stop.interruptible(lambda: finished.append(1)):
        pass
    assert not finished
    stop.request()
    with pytest.raises(Stopped) as e, stop.interruptible(lambda: finished.append(2)):
        finished.append("begun")
    assert finished == [2] and e.value.code == 75


@pytest.mark.parametrize("family", ["vae", *SLOW])
def test_preempted_run_resumes_exactly(family, tmp_path):
    """After a step at which nothing else is due: its share of the metrics is saved with it."""
    train(family, tmp_path / "whole")
    stop = PreemptionHandler()
    with pytest.raises(Stopped, match="step 5") as e:
        train(family, tmp_path / "stopped", stop, on_batch=runs.at_batch(5, stop.request))
    assert e.value.code == 75
    assert final_state(tmp_path / "stopped")[1] == 5
    assert steps_of(tmp_path / "stopped") == [2, 3, 4]
    train(family, tmp_path / "stopped")
    same_runs(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_request_at_any_step(number, tmp_path, watched):
    """Also the first, the last, one that is saved and evaluated anyway, one that is recorded."""
    stop = PreemptionHandler()
    with pytest.raises(Stopped):
        train("vae", tmp_path, stop, on_batch=runs.at_batch(number, stop.request), **WATCHED)
    # The first step compiles, which is nothing to wait for: there is nothing to save yet.
    assert final_state(tmp_path)[1] == number if number > 1 else records(tmp_path) == []
    train("vae", tmp_path, **WATCHED)
    same_runs(watched, tmp_path)


def test_one_request_after_another(tmp_path, watched):
    for number in range(1, 7):
        stop = PreemptionHandler()
        with pytest.raises(Stopped):
            train("vae", tmp_path, stop, on_batch=runs.at_batch(number, stop.request), **WATCHED)
    train("vae", tmp_path, **WATCHED)
    same_runs(watched, tmp_path)


def test_a_request_before_the_start_begins_nothing(tmp_path):
    stop = PreemptionHandler()
    stop.request()
    with pytest.raises(Stopped):
        train("vae", tmp_path / "w", stop)
    assert not (tmp_path / "w").exists()


def in_hook(monkeypatch, hook, number, action):
    """Does something in the `number`th evaluation, or as soon as it has made its samples."""
    calls = []

    def around(original):
        def called(*args, **kwargs):
            calls.append(1)
            if len(calls) == number:
                action()
            return original(*args, **kwargs)

        return called

    if hook == "evaluation":
        evaluator = trainer.Evaluator
        monkeypatch.setattr(evaluator, "__call__", around(evaluator.__call__))
    else:
        monkeypatch.setattr(hooks, "save_samples", around(hooks.save_samples))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("hook", ["evaluation", "sampling"])
def test_a_request_during_a_hook(hook, number, tmp_path, watched, monkeypatch):
    """What has begun is finished, and not done twice."""
    stop = PreemptionHandler()
    with monkeypatch.context() as patch:
        in_hook(patch, hook, number, stop.request)
        try:
            train("vae", tmp_path, stop, **WATCHED)
        except Stopped:
            pass
        else:
            assert number == 2  # nothing was left to do
    train("vae", tmp_path, **WATCHED)
    same_runs(watched, tmp_path)
    assert steps_of(tmp_path, "eval") == [3, 6]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("hook", ["evaluation", "sampling"])
def test_interrupted_callback_runs_once_after_restart(hook, number, tmp_path, watched, monkeypatch):
    """As when the process leaves in the middle of it: its step is saved."""
    with monkeypatch.context() as patch:
        in_hook(patch, hook, number, runs.interrupt)
        with pytest.raises(KeyboardInterrupt):
            train("vae", tmp_path, **WATCHED)
    step = {("evaluation", 1): 3, ("sampling", 1): 4}.get((hook, number), 6)
    assert final_state(tmp_path)[1] == step
    with monkeypatch.context() as patch:
        calls = []
        in_hook(patch, "evaluation", -1, None)
        in_hook(patch, "sampling", -1, None)
        evaluated = trainer.Evaluator.__call__
        patch.setattr(
            trainer.Evaluator, "__call__", lambda *a: (calls.append("evaluation"), evaluated(*a))[1]
        )
        train("vae", tmp_path, **WATCHED)
    # Those that were there already are not made again: of step 6, the evaluation comes first.
    left = {("evaluation", 1): 2, ("evaluation", 2): 1, ("sampling", 1): 1, ("sampling", 2): 0}
    assert len(calls) == left[hook, number]
    same_runs(watched, tmp_path)
    assert steps_of(tmp_path, "eval") == [3, 6]
    before = records(tmp_path)
    train("vae", tmp_path, **WATCHED)
    assert records(tmp_path) == before


def test_late_callback_is_saved_before_another_kill(tmp_path, watched):
    """Killed in the first step after it: the evaluation is not lost, and not there twice."""
    with pytest.raises(KeyboardInterrupt):
        train("vae", tmp_path, on_batch=runs.at_batch(4, runs.interrupt), **WATCHED)
    kept = [r for r in records(tmp_path) if r["step"] <= 3]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train("vae", tmp_path, on_batch=runs.at_batch(4, runs.interrupt), **WATCHED)
        assert [r for r in records(tmp_path) if r["step"] <= 3] == kept
    train("vae", tmp_path, **WATCHED)
    same_runs(watched, tmp_path)


# Signals -------------------------------------------------------------------------------------

# What a program with nothing to compute does: all of this without JAX, so it starts at once.
PROGRAM = """
import sys, time
from aigc_jax.core.errors import Stopped
from aigc_jax.distributed.preemption import PreemptionHandler

def finish():
    print("finishing", flush=True)
    time.sleep(float(sys.argv[2]))

with PreemptionHandler().listen() as stop:
    if sys.argv[1] == "free":
        with stop.interruptible(finish):
            print("ready", flush=True)
            time.sleep(60)
    with stop.interruptible(finish):
        pass  # from here on, something could be lost
    print("ready", flush=True)
    while not stop.agreed():
        time.sleep(0.01)
    print("agreed", flush=True)
    time.sleep(float(sys.argv[2]))
    try:
        with stop.interruptible(lambda: None):
            print("never")
    except Stopped as e:
        sys.exit(e.code)
"""


def start(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def ended(process, timeout=60):
    """Its exit code, and what it has said since."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_in_an_interruptible_phase_exits(number):
    process = start(PROGRAM, "free", 0)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code, out, err = ended(process)
    assert code == 75 and out == "finishing\n"
    assert number.name in err and "stopped" in err and "Traceback" not in err


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_outside_interruptible_phases_is_a_request(number):
    process = start(PROGRAM, "busy", 0)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code, out, err = ended(process)
    assert code == 75 and out == "agreed\n"
    assert number.name in err and "second" in err


@pytest.mark.parametrize("phase, heard", [("free", "finishing\n"), ("busy", "agreed\n")])
@pytest.mark.parametrize("first, second", [SIGNALS, SIGNALS[::-1], SIGNALS[:1] * 2])
def test_a_second_signal_leaves_at_once(phase, heard, first, second):
    """Also while the process finishes what was begun."""
    process = start(PROGRAM, phase, 50)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(first)
    assert process.stdout.readline() == heard
    time.sleep(AGAIN)  # until then it counts as the same request, delivered twice
    began = time.monotonic()
    process.send_signal(second)
    assert ended(process)[0] == 128 + second
    assert time.monotonic() - began < 40


def test_one_request_that_comes_twice_is_one(monkeypatch):
    """`timeout` signals a process, and then its whole group."""
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    stop = PreemptionHandler()
    for receiver in ("thread", "main", "thread", "main"):
        stop._signalled(signal.SIGTERM, receiver)
    assert stop.requested and not left
    later = time.monotonic() + AGAIN
    monkeypatch.setattr(time, "monotonic", lambda: later)
    stop._signalled(signal.SIGTERM, "main")
    assert left == [128 + signal.SIGTERM]


def test_closed_pipe_does_not_break_a_stream():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8", closefd=False) as stream:
        print("nobody", file=UnbreakableStream(stream), flush=True)
        with pytest.raises(BrokenPipeError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    os.close(write)


def test_other_handlers_come_back():
    before = [signal.getsignal(s) for s in SIGNALS], signal.set_wakeup_fd(-1)
    with PreemptionHandler().listen() as stop:
        assert [signal.getsignal(s) for s in SIGNALS] != before[0]
    assert ([signal.getsignal(s) for s in SIGNALS], signal.set_wakeup_fd(-1)) == before
    assert not stop.requested


RECIPE = """
import sys
sys.path.insert(0, {tests!r})
from helpers import tiny

def get_config():
    return tiny.recipe("vae")
"""
FOREVER = ["--config.train.steps=1000000", "--config.checkpoint.every=1000000"]


@pytest.fixture
def aigc(tmp_path):
    """Starts `aigc train` in a folder of `tmp_path`."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(tests=str(TESTS)))
    started = []

    def call(*words, workdir="w"):
        command = [sys.executable, "-m", "aigc_jax.main", "train", f"--config={recipe}"]
        command += [f"--workdir={tmp_path / workdir}", *words]
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        options["env"] = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles faster
        started.append(subprocess.Popen(command, **options))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "still waiting"
        time.sleep(0.005)


def test_a_signal_to_a_training_run(aigc, tmp_path):
    """It saves where it stands, although nothing was due, and says so."""
    process = aigc(*FOREVER)
    metrics = tmp_path / "w" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 1000, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 75 and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("aigc: ")]
    assert len(lines) == 2 and "SIGTERM" in lines[0] and "which is saved" in lines[1]
    (step,) = os.listdir(tmp_path / "w" / "checkpoints")
    assert f"after step {step}," in lines[1]
    assert final_state(tmp_path / "w")[1] == int(step)
    steps = int(step) + 3
    train("vae", tmp_path / "w", train=dict(steps=steps), checkpoint=dict(every=1000000))
    due = [n for n in range(1, steps + 1) if n % 2 == 0 or n == steps]
    assert steps_of(tmp_path / "w") == due


def listens(process):
    """Whether a process has a handler for SIGTERM."""
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as f:
        caught = next(line for line in f if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no /proc")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", ["importing", "compiling"])
def test_a_signal_before_the_first_step(moment, number, aigc, tmp_path):
    """Nothing has been done that could be lost, and nothing is in the way of the next try."""
    process = aigc(*FOREVER)
    lock = tmp_path / "w" / "lock"
    wait_for(lambda: listens(process) if moment == "importing" else lock.exists(), process)
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == 75 and "Traceback" not in err and number.name in err
    assert not (tmp_path / "w" / "metrics.jsonl").exists() or records(tmp_path / "w") == []
    assert ended(aigc())[0] == ended(aigc(workdir="whole"))[0] == 0
    same_runs(tmp_path / "whole", tmp_path / "w")


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_an_evaluation(number, aigc, tmp_path):
    """The process leaves in the middle; the evaluation is made up for afterwards."""
    flags = ["--config.eval.every=3", "--config.eval.batches=0", "--config.eval.batch_size=1",
             "--config.objective.importance_samples=8"]  # fmt: skip
    process = aigc(*flags)
    metrics = tmp_path / "w" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"step": 3' in metrics.read_text(), process)
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == 75 and "Traceback" not in err
    assert steps_of(tmp_path / "w") == [2, 3] and steps_of(tmp_path / "w", "eval") == []
    assert final_state(tmp_path / "w")[1] == 3
    assert ended(aigc(*flags))[0] == ended(aigc(*flags, workdir="whole"))[0] == 0
    same_runs(tmp_path / "whole", tmp_path / "w")


@pytest.mark.slow
def test_many_signals_at_any_moment(aigc, tmp_path):
    """Asked to stop again and again, it gets there, and ends where an undisturbed run does."""
    flags = ["--config.train.steps=1500", "--config.eval.every=200", "--config.sample.every=300",
             "--config.checkpoint.every=100", "--config.train.log_every=50"]  # fmt: skip
    assert ended(aigc(*flags, workdir="whole"), 300)[0] == 0
    codes = []
    for seconds in (3, 5, 6, 7, 8):
        process = aigc(*flags)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        codes.append(ended(process, 120)[0])
    assert set(codes) <= {0, 75, -signal.SIGTERM}  # before it listens, it just ends
    assert ended(aigc(*flags), 300)[0] == 0
    same_runs(tmp_path / "whole", tmp_path / "w")


def test_tiny_is_what_the_recipe_says():
    """The processes above train the same model as `train` here."""
    namespace = {}
    exec(RECIPE.format(tests=str(TESTS)), namespace)
    assert namespace["get_config"]().to_dict() == tiny.recipe("vae").to_dict()
