"""Kills a training run repeatedly, and checks that it ends like an uninterrupted one.

    python launch/chaos.py --config=vae/quickstart --workdir=runs/chaos --kills=20

It trains one uninterrupted run, and one that is killed `--kills` times by SIGKILL (or the signals
in `--signals`) at random instants of random phases: while it starts or compiles, in a step, while a
checkpoint is being written, while it evaluates or samples. Each kill point is printed; they depend
on `--seed`. Then the second run is left to finish, and both are compared: every array of the state
bit for bit (parameters, optimizer, averages, random state), the data position, and metrics.jsonl
record by record. A run that finishes before all kills are done is compared, too, and another one
is started.

With `--processes=2` the run has several processes, of which one or all are killed. Flags of `aigc
train`, such as `--config.train.steps=400`, are passed on.

Exit status: 0 if both runs are equal, 1 if not.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import local

# The victim runs `aigc train` as it is, and reports on a pipe when it enters a phase.
VICTIM = """
import dataclasses, os, sys
from aigc_jax.cli import flags, main

pipe = int(os.environ["CHAOS_PIPE"])
def report(phase):
    try:
        os.write(pipe, (phase + "\\n").encode())
    except OSError:  # the reader is gone
        pass
def around(owner, name, phase):
    inner = getattr(owner, name)
    def wrapped(*args, **kwargs):
        report(phase)
        return inner(*args, **kwargs)
    setattr(owner, name, wrapped)
def patch():
    from aigc_jax.runs import hooks, trainer
    from aigc_jax.training import checkpoint, compile
    around(trainer.Trainer, "_begin", "begin")
    around(trainer.Trainer, "_train", "compile")
    around(compile.CompiledStep, "__call__", "step")
    around(trainer.Evaluator, "__call__", "evaluate")
    around(hooks, "save_samples", "sample")
    around(checkpoint.CheckpointWriter, "save", "save")
    around(checkpoint.CheckpointWriter, "wait", "wait")
command = flags.COMMANDS["train"]
def train():
    patch()
    return command.run()
flags.COMMANDS["train"] = dataclasses.replace(command, run=train)
around(flags, "check_overrides", "start")
main.run()
"""
PHASES = ("start", "begin", "compile", "step", "save", "wait", "evaluate", "sample")
# Seconds within which a phase's kill falls after the phase has begun.
SPREAD = {"start": 3.0, "begin": 2.0, "compile": 3.0, "save": 0.15, "wait": 0.1, "evaluate": 0.5}
TIMES = {"time", "steps_per_second", "examples_per_second", "data_wait"}


class Run:
    """One start of the victim, in one process or several."""

    def __init__(self, command: list[str], processes: int, log):
        self.read, write = os.pipe()
        os.set_blocking(self.read, False)
        environment = {**os.environ, "CHAOS_PIPE": str(write)}
        options = dict(env=environment, pass_fds=(write,), stdout=log, stderr=log)
        if processes == 1:
            self.processes = [subprocess.Popen(command, **options)]
        else:
            self.processes = local.start(command, processes, **options)
        os.close(write)
        self._rest = b""

    def phases(self) -> list[str]:
        """The phases that were entered since the last call."""
        with contextlib.suppress(BlockingIOError):
            self._rest += os.read(self.read, 1 << 16)
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode() for line in lines]

    @property
    def over(self) -> bool:
        return all(p.poll() is not None for p in self.processes)

    def wait(self) -> list[int]:
        codes = [p.wait() for p in self.processes]
        os.close(self.read)
        return codes


def disturb(run: Run, rng: random.Random, signals: list[signal.Signals]) -> str:
    """Kills a run in a random phase; returns the kill point, or "" if the run ended before."""
    phase = rng.choice(PHASES)
    count = rng.randint(1, {"step": 200, "save": 3, "wait": 3}.get(phase, 1))
    delay = rng.random() * SPREAD.get(phase, 0.02)
    seen = 0
    while seen < count:
        if run.over:
            return ""
        seen += run.phases().count(phase)
        if seen < count:
            time.sleep(0.0005)
    time.sleep(delay)
    victims = [p for p in run.processes if p.poll() is None]
    # Killing one of several while they start would make the others wait for it for minutes.
    if len(victims) > 1 and rng.random() < 0.7 and phase != "start":
        victims = [rng.choice(victims)]
    which = "+".join(str(run.processes.index(p)) for p in victims)
    number = rng.choice(signals)
    for p in victims:
        p.send_signal(number)
    return f"{phase} {count} + {delay * 1e3:.1f} ms, {number.name} to process {which}"


def final(workdir: str) -> tuple[dict, list[dict]]:
    """The newest checkpoint of a run as bytes, and its records."""
    import jax
    import numpy as np

    from aigc_jax.experiment.restore import load_checkpoint
    from aigc_jax.training.checkpoint import restore_latest
    from aigc_jax.training.metric_log import read_metrics

    def everything(reader, step, contents):
        _, state = load_checkpoint(reader, step, contents)
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
        arrays = {jax.tree_util.keystr(k): np.asarray(x).tobytes() for k, x in leaves}
        return {**arrays, "data": json.dumps(contents["data"], sort_keys=True)}

    step, found = restore_latest(workdir, everything)
    records = [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(workdir)]
    return {"step": step, **found}, records


def compare(whole: str, killed: str) -> list[str]:
    """The differences of two runs, as phrases."""
    (a, records_a), (b, records_b) = final(whole), final(killed)
    wrong = [f"{key} differs" for key in a.keys() | b.keys() if a.get(key) != b.get(key)]
    if records_a != records_b:
        steps_a, steps_b = ([(r["step"], r["kind"]) for r in rs] for rs in (records_a, records_b))
        wrong.append(f"metrics.jsonl differs: steps {steps_a[:5]}… and {steps_b[:5]}…"
                     if steps_a != steps_b else "metrics.jsonl differs in its numbers")  # fmt: skip
    samples = [sorted(os.listdir(os.path.join(w, "samples"))) for w in (whole, killed)]
    return wrong + (["the samples differ"] if samples[0] != samples[1] else [])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, help="folder for whole/ and killed/")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--signals", default="KILL", help="such as KILL,TERM,INT")
    arguments, passed_on = parser.parse_known_args(argv)
    signals = [signal.Signals[f"SIG{name}"] for name in arguments.signals.split(",")]
    rng = random.Random(arguments.seed)
    whole, killed = (os.path.join(arguments.workdir, name) for name in ("whole", "killed"))
    os.makedirs(arguments.workdir, exist_ok=True)

    def start(workdir: str) -> Run:
        command = [sys.executable, "-c", VICTIM, "train", f"--config={arguments.config}",
                   f"--workdir={workdir}", *passed_on]  # fmt: skip
        return Run(command, arguments.processes, log)

    with open(os.path.join(arguments.workdir, "log.txt"), "w", encoding="utf-8") as log:
        # An uninterrupted run that exists already is not trained again.
        if any(start(whole).wait()):
            sys.exit(f"the uninterrupted run failed: see {log.name}")
        kills, wrong = 0, []
        while kills < arguments.kills and not wrong:
            shutil.rmtree(killed, ignore_errors=True)
            while True:
                run = start(killed)
                point = disturb(run, rng, signals) if kills < arguments.kills else ""
                began = time.monotonic()
                codes = run.wait()
                seconds = time.monotonic() - began
                if not point:
                    break
                kills += 1
                print(f"kill {kills}: {point}; exit {codes} after {seconds:.1f} s", flush=True)
            if any(codes):
                sys.exit(f"the killed run failed by itself with {codes}: see {log.name}")
            wrong = compare(whole, killed)
            print("\n".join(wrong) or f"after {kills} kills: equal bit for bit", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
