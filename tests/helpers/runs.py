"""Tiny runs that share their compiled programs, and what a run leaves behind."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

import aigc_jax
from aigc_jax.experiment import build
from aigc_jax.runs.trainer import Trainer, make_loader
from aigc_jax.training.metric_log import read_metrics
from helpers import tiny

TIMES = {"time", "steps_per_second", "examples_per_second", "data_wait"}
# Sections and fields that no compiled program depends on.
NOT_COMPILED = {"data", "eval", "sample", "checkpoint", "anomaly", "watchdog", "seed"}
_built: dict[str, build.Run] = {}


class ChangedFeed:
    """A feed of which `changes` see each batch, before the step does.

    Args:
      feed: the feed that is read.
      changes: each is called with (this feed, the batch), and may change the batch or raise.
    """

    def __init__(self, feed, changes):
        self._feed, self._changes = feed, changes
        self.position, self.seek = feed.position, feed.seek
        self.skip_to, self.example_ids = feed.skip_to, feed.example_ids

    @property
    def taken(self):
        return self._feed.taken

    def next(self, state):
        batch = {k: np.array(x) for k, x in self._feed.next(state).items()}
        for change in self._changes:
            change(self, batch)
        return batch


def train(
    family, workdir, stop=None, *, on_batch=(), make_feed=make_loader, callbacks=(), **changes
):
    """Trains a tiny run; runs of the same model share their compiled step.

    Args:
      family: one of `tiny.FAMILIES`.
      workdir: its folder.
      stop: requests to stop.
      on_batch: called with (feed, batch) at each training batch, which is number `feed.taken`.
      make_feed: as `Trainer` takes it.
      callbacks: observers of the run.
      **changes: merged into the sections of the recipe.
    """
    config = build.parse_config(tiny.recipe(family, **changes))
    on_batch = on_batch if isinstance(on_batch, (list, tuple)) else [on_batch]

    def feed(run, dataset):
        made = make_feed(run, dataset)
        return ChangedFeed(made, on_batch) if on_batch else made

    trainer = Trainer(
        config,
        str(workdir),
        stop,
        callbacks=callbacks,
        make_feed=feed,
        make_run=build_once,
    )
    return trainer.run(progress=False)


def build_once(config, spec, *, parts):
    """`build.build`, whose result is kept for the next run of the same model, step and data."""
    raw = config.raw
    key = {k: v for k, v in raw.items() if k not in NOT_COMPILED}
    key["batch"] = [config.data.batch_size, config.eval.batch_size, spec.to_json()]
    key["train"] = {k: v for k, v in raw["train"].items() if k != "log_every"}
    if '"schedule": "constant"' in json.dumps(raw["optim"]):
        del key["train"]["steps"]
    key = json.dumps(key, sort_keys=True)
    if key not in _built:
        _built[key] = build.build(config, spec, parts=parts)
    return dataclasses.replace(_built[key], config=config)


def final_state(workdir):
    """The newest state that is whole, on the host, and its step."""
    _, state, step = aigc_jax.restore(str(workdir))
    return jax.device_get(state), step


def records(workdir):
    """What metrics.jsonl says of everything but speed."""
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(str(workdir))]


def same_runs(a, b):
    """Asserts that two runs have come to the same state with the same records."""
    (state_a, step_a), (state_b, step_b) = final_state(a), final_state(b)
    assert step_a == step_b
    chex.assert_trees_all_equal(state_a, state_b)
    assert records(a) == records(b)


def steps_of(workdir, kind="train"):
    return [r["step"] for r in read_metrics(str(workdir)) if r["kind"] == kind]


def files(workdir):
    """All that lies in a folder, but for the lock: {path: bytes, or none for a folder}."""
    found = {}
    for folder, names, leaves in os.walk(workdir):
        found |= {os.path.join(folder, name): None for name in names}
        for name in leaves:
            with open(os.path.join(folder, name), "rb") as f:
                found[os.path.join(folder, name)] = f.read()
    return {k: v for k, v in found.items() if k != os.path.join(workdir, "lock")}


def leaf_files(folder):
    return sorted(path for path, content in files(folder).items() if content is not None)


def said(capsys):
    """The lines that the library has said since the last call."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("aigc: ")]


def at_batch(number, action):
    """For `on_batch`: does something once, when that batch is read (counted from 1)."""
    done = []

    def change(feed, batch):
        if feed.taken == number and not done:
            done.append(1)
            action()

    return change


def wait_for_checkpoint(workdir, step):
    """Returns when the one that is being written in the background is whole."""
    with no_hang():
        while not os.path.exists(os.path.join(workdir, "checkpoints", str(step))):
            time.sleep(0.01)


def interrupt():
    raise KeyboardInterrupt


@contextlib.contextmanager
def no_hang(seconds=120):
    """Fails, instead of waiting for ever."""

    def late(*_):
        raise TimeoutError(f"still waiting after {seconds} s")

    before, rest = signal.signal(signal.SIGALRM, late), signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(rest)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def mounted(folder, options):
    """A small file system of its own at `folder`; skips the test where that is not allowed."""
    os.makedirs(folder, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as e:
        pytest.skip(f"there is no mount: {e}")
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


HOLDER = """
import sys, time
from aigc_jax.core.workdir import WorkdirLock
lock = WorkdirLock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def lock_holder(workdir):
    """A process that holds a workdir's lock."""
    command = [sys.executable, "-c", HOLDER, str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def fill(path):
    """Takes all the space that is left."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1 << 12, 1):
        with contextlib.suppress(OSError):
            while os.write(fd, bytes(size)):
                pass
    with pytest.raises(OSError) as e:
        os.write(fd, b"1")
    os.close(fd)
    assert e.value.errno == errno.ENOSPC


def events(workdir):
    """(tag, step, value) of all TensorBoard events, as TensorBoard shows them.

    Files in the order of time; a start of a session at a step takes back what came from there on.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found = []
    names = [n for n in os.listdir(workdir) if ".tfevents." in n]
    for name in sorted(names, key=lambda n: os.path.getmtime(os.path.join(workdir, n))):
        with open(os.path.join(workdir, name), "rb") as f:
            content = f.read()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            assert len(content) >= size + 16, "half an event"
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.session_log.status == SessionLog.START:
                found = [e for e in found if e[1] < event.step]
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return found
