"""Damaged checkpoints, two runs in one workdir, full disks: what a run must survive or refuse."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import chex
import jax
import numpy as np
import pytest
from helpers import runs, tiny
from helpers.paths import TESTS
from helpers.runs import files, final_state, leaf_files, said, same_runs, steps_of, train
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import aigc_jax
from aigc_jax.core.errors import StorageError, UserError
from aigc_jax.core.workdir import WorkdirLock, read_lock_holder
from aigc_jax.distributed.mesh import make_mesh, replicated
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.training import checkpoint, metric_log
from aigc_jax.training.checkpoint import CheckpointReader, CheckpointWriter

# What Orbax leaves behind when it fails is none of ours.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of 6 steps with checkpoints 3 and 6."""
    workdir = tmp_path_factory.mktemp("saved") / "w"
    train("vae", workdir)
    return workdir


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """The same run of 8 steps, without any trouble."""
    workdir = tmp_path_factory.mktemp("longer") / "w"
    train("vae", workdir, train=dict(steps=8))
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy of the run of 6 steps."""
    return shutil.copytree(saved, tmp_path / "w")


def more(workdir, **changes):
    return train("vae", workdir, **{"train": dict(steps=8), **changes})


# Damage --------------------------------------------------------------------------------------


def largest(step):
    return max(leaf_files(step), key=os.path.getsize)


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip(path, rng):
    """Another bit somewhere in a file."""
    with open(path, "rb") as f:
        content = bytearray(f.read())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    with open(path, "wb") as f:
        f.write(content)


def scramble(path):
    """Another byte here and there."""
    with open(path, "rb") as f:
        content = np.frombuffer(f.read(), np.uint8).copy()
    content[100::200] ^= 255
    with open(path, "wb") as f:
        f.write(content)


def another_digit(path):
    """Another first digit of the longest number in a JSON file."""
    with open(path, encoding="utf-8") as f:
        text = f.read()
    numbers = "".join(c if c.isdigit() else " " for c in text)
    at = numbers.index(max(numbers.split(), key=len))
    with open(path, "w", encoding="utf-8") as f:
        f.write(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


def empty(step):
    shutil.rmtree(step)
    os.mkdir(step)


def unfinished(step):
    os.rename(step, f"{step}.orbax-checkpoint-tmp")


def into_file(step):
    shutil.rmtree(step)
    with open(step, "w") as f:
        f.write("not a folder")


DAMAGES = {
    "truncated": lambda step: truncate(largest(step)),
    "emptied file": lambda step: os.truncate(largest(step), 0),
    "missing file": lambda step: os.remove(largest(step)),
    "scrambled": lambda step: scramble(largest(step)),
    "empty": empty,
    "no state": lambda step: shutil.rmtree(os.path.join(step, "state")),
    "no data": lambda step: shutil.rmtree(os.path.join(step, "data")),
    "no config": lambda step: shutil.rmtree(os.path.join(step, "config")),
    "digit in data": lambda step: another_digit(os.path.join(step, "data", "metadata")),
    "digit in config": lambda step: another_digit(os.path.join(step, "config", "metadata")),
    "a file": into_file,
}
# Those that leave no folder 6 behind to put aside.
VANISHED = {"unfinished": unfinished, "gone": shutil.rmtree}


@pytest.mark.parametrize("kind", [*DAMAGES, *VANISHED])
def test_the_checkpoint_before_a_damaged_one_is_used(kind, workdir, longer, capsys):
    """Said in one line; the run ends as if nothing had happened; the damaged one is put aside."""
    {**DAMAGES, **VANISHED}[kind](str(workdir / "checkpoints" / "6"))
    more(workdir)
    lines = [line for line in said(capsys) if "checkpoint 6" in line]
    assert len(lines) == 1 and str(workdir) in lines[0]
    same_runs(workdir, longer)
    if kind in DAMAGES:
        assert os.listdir(workdir / "damaged") == ["6"]
    assert sorted(os.listdir(workdir / "checkpoints")) == ["6", "8"]
    assert runs.steps_of(workdir) == [2, 3, 4, 6, 8]


def restored_or_refused(workdir, whole, capsys):
    """What a damaged checkpoint 6 may lead to; returns the step that was restored."""
    capsys.readouterr()
    state, step = final_state(workdir)
    lines = [line for line in said(capsys) if "checkpoint 6" in line]
    if step == 6:  # harmless
        assert lines == []
        chex.assert_trees_all_equal(state, whole)
    else:
        assert step == 3 and len(lines) == 1
    return step


FILE_DAMAGES = {
    "flipped": flip,
    "truncated": lambda path, rng: os.truncate(path, rng.integers(os.path.getsize(path))),
    "missing": lambda path, rng: os.remove(path),
}


def every_file(kind, workdir, seeds, capsys):
    """Damages each file of checkpoint 6 in turn; {file: the steps that were restored}."""
    step, found = workdir / "checkpoints" / "6", {}
    whole, _ = final_state(workdir)
    for path in leaf_files(step):
        with open(path, "rb") as f:
            content = f.read()
        for seed in seeds:
            FILE_DAMAGES[kind](path, np.random.default_rng([seed, len(content)]))
            restored = restored_or_refused(workdir, whole, capsys)
            found.setdefault(os.path.relpath(path, step), set()).add(restored)
            with open(path, "wb") as f:
                f.write(content)
    assert final_state(workdir)[1] == 6
    return found


@pytest.mark.parametrize("kind", FILE_DAMAGES)
def test_damage_in_any_file_is_found_or_harmless(kind, workdir, capsys):
    found = every_file(kind, workdir, range(1), capsys)
    assert {3} in found.values()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flipped", "truncated"])
def test_damage_in_any_file_many_times(kind, workdir, capsys):
    every_file(kind, workdir, range(1, 20), capsys)


def test_every_value_beside_the_arrays_is_checked(workdir, capsys):
    """No change of a value in the JSON items passes, whatever it still means as JSON."""
    whole, _ = final_state(workdir)
    for item in ("data", "config"):
        path = workdir / "checkpoints" / "6" / item / "metadata"
        text = path.read_text()
        places = [i for i, c in enumerate(text) if c.isalnum()]
        for at in np.random.default_rng(0).choice(places, 12, replace=False):
            other = str((int(text[at]) + 1) % 10) if text[at].isdigit() else "x"
            other = "y" if other == text[at] else other
            path.write_text(text[:at] + other + text[at + 1 :])
            assert restored_or_refused(workdir, whole, capsys) == 3, text[at - 20 : at + 20]
        path.write_text(text)


def test_arrays_that_orbax_reads_without_complaint_are_checked(workdir, capsys):
    """A state of another run under the same name: only the checksums tell."""
    state = workdir / "checkpoints" / "6" / "state"
    shutil.rmtree(state)
    shutil.copytree(workdir / "checkpoints" / "3" / "state", state)
    assert final_state(workdir)[1] == 3
    assert "arrays have changed" in "".join(said(capsys))


def test_reading_uses_the_good_one_and_changes_nothing(workdir, tmp_path, capsys):
    only = shutil.copytree(workdir, tmp_path / "only")
    shutil.rmtree(only / "checkpoints" / "6")
    truncate(largest(workdir / "checkpoints" / "6"))
    before = files(workdir)
    assert aigc_jax.evaluate(str(workdir)) == aigc_jax.evaluate(str(only))
    assert aigc_jax.evaluate(str(workdir))["step"] == 3
    samples = aigc_jax.sample(str(workdir), num=2)
    np.testing.assert_array_equal(samples, aigc_jax.sample(str(only), num=2))
    assert files(workdir) == before


@pytest.mark.parametrize("kind", ["truncated", "empty", "no config", "a file"])
def test_without_whole_checkpoint_the_run_is_refused(kind, workdir):
    for step in ("3", "6"):
        DAMAGES[kind](str(workdir / "checkpoints" / step))
    before = files(workdir)
    for use in (more, aigc_jax.evaluate, aigc_jax.sample):
        with pytest.raises(UserError, match="checkpoint") as e:
            use(str(workdir))
        assert e.value.code == 2 and "\n" not in str(e.value)
    assert files(workdir) == before


@pytest.mark.parametrize("kind", ["removed", "emptied", "unfinished"])
def test_lost_checkpoints_do_not_restart_the_run(kind, workdir):
    """The run is known to have saved step 6; the message says so."""
    folder = workdir / "checkpoints"
    if kind == "unfinished":
        for step in ("3", "6"):
            unfinished(str(folder / step))
    else:
        shutil.rmtree(folder)
        if kind == "emptied":
            folder.mkdir()
    before = files(workdir)
    with pytest.raises(UserError, match="step 6") as e:
        more(workdir)
    assert "gone" in str(e.value)
    assert files(workdir) == before


def test_something_else_where_the_checkpoints_should_be(workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").write_text("a file")
    before = files(workdir)
    for use in (more, aigc_jax.evaluate):
        with pytest.raises(UserError, match="checkpoints"):
            use(str(workdir))
    assert files(workdir) == before


@pytest.mark.parametrize("content", [None, b"\xff\x00", b'{"step": "six"}'])
def test_saved_json_may_be_missing_or_damaged(content, workdir, longer):
    (workdir / "saved.json").unlink()
    if content is not None:
        (workdir / "saved.json").write_bytes(content)
    more(workdir)
    same_runs(workdir, longer)
    assert checkpoint.last_saved_step(str(workdir)) == 8


def test_restart_after_a_kill_before_the_first_checkpoint(tmp_path, saved):
    """A temporary folder of a checkpoint that was never whole, and a few records."""
    with pytest.raises(KeyboardInterrupt):
        train("vae", tmp_path, on_batch=runs.at_batch(3, runs.interrupt))
    left = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(saved / "checkpoints" / "3" / "state", left / "state")
    train("vae", tmp_path)
    same_runs(tmp_path, saved)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "6"]


def test_leftovers_of_a_killed_save_are_removed(workdir):
    """A temporary folder of a step that is not saved again, say one at which the run stopped."""
    shutil.copytree(workdir / "checkpoints" / "6", workdir / "checkpoints" / "5")
    unfinished(str(workdir / "checkpoints" / "5"))
    more(workdir)
    assert sorted(os.listdir(workdir / "checkpoints")) == ["6", "8"]


def test_a_second_damaged_one_does_not_replace_the_first(workdir, longer):
    for _ in range(2):
        truncate(largest(workdir / "checkpoints" / "6"))
        train("vae", workdir)
    assert sorted(os.listdir(workdir / "damaged")) == ["6", "6.1"]
    more(workdir)
    same_runs(workdir, longer)


def test_only_checkpoint_is_removed_after_the_next_is_complete(tmp_path, monkeypatch):
    seen, original = [], shutil.rmtree

    def rmtree(path, *args, **kwargs):
        if os.path.basename(path) == "3":
            with contextlib.closing(CheckpointReader(str(tmp_path))) as reader:
                seen.append(reader.contents(6)["data"]["feed"]["examples"])
            assert final_state(tmp_path)[1] == 6
        return original(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    train("vae", tmp_path, checkpoint=dict(keep=1))
    assert seen == [48] and os.listdir(tmp_path / "checkpoints") == ["6"]


def test_nothing_of_a_checkpoint_is_unpickled(workdir):
    """Arrays and JSON: there is nothing to unpickle, and nothing in it that names code."""
    for path, content in files(workdir / "checkpoints").items():
        assert content is None or not content.startswith(b"\x80"), path
        assert b"jax._src" not in (content or b""), path


AUDITED = """
import sys
from absl import flags
import jax
flags.FLAGS.mark_as_parsed()
jax.config.update("jax_disable_most_optimizations", True)
found = []
sys.addaudithook(lambda name, args: name == "pickle.find_class" and found.append(args))
import aigc_jax
from aigc_jax.runs.report.samples import write_samples
from helpers import tiny
workdir = sys.argv[1]
aigc_jax.train(tiny.recipe("vae", train=dict(steps=3)), workdir, progress=False)
aigc_jax.train(tiny.recipe("vae", eval=dict(every=3)), workdir, progress=False)
aigc_jax.evaluate(workdir)
write_samples(aigc_jax.sample(workdir, num=2), workdir + "/picture")
print(found)
"""


@pytest.mark.slow
def test_nothing_is_unpickled_from_training_to_sampling(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, str(tmp_path / "w")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# Other devices -------------------------------------------------------------------------------


@pytest.mark.slow
def test_arrays_are_the_same_on_other_devices(tmp_path, saved):
    """Saved from one, two or four devices, whole or in parts; restored on one, two or four."""
    _, state, _ = aigc_jax.restore(str(saved))
    shapes = jax.eval_shape(lambda: state)
    with contextlib.closing(CheckpointReader(str(saved))) as reader:
        contents = reader.contents(6)
    meshes = {n: make_mesh(f"data={n}") for n in (1, 2, 4)}

    def in_parts(x):
        split = x.ndim and x.shape[0] % 4 == 0
        return jax.device_put(x, NamedSharding(meshes[4], P("data") if split else P()))

    placed = {
        1: jax.device_put(state, replicated(meshes[1])),
        4: jax.device_put(state, replicated(meshes[4])),
        "parts": jax.tree.map(in_parts, state),
    }
    kept = {k: v for k, v in contents["config"].items() if k != "checksums"}
    wanted = checkpoint.field_checksums(state)
    (tmp_path / "w").mkdir()
    for step, (name, arrays) in enumerate(placed.items(), 1):
        writer = CheckpointWriter(str(tmp_path / "w"), 9, step - 1)
        writer.save(step, arrays, contents["data"], kept)
        writer.wait()
        writer.close()
        with contextlib.closing(CheckpointReader(str(tmp_path / "w"))) as reader:
            for mesh in meshes.values():
                found = reader.contents(step)
                assert found["config"]["checksums"] == wanted, name
                again = reader.state(step, shapes, replicated(mesh), found)
                chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(again))


@pytest.mark.slow
def test_epoch_resumes_on_other_devices(tmp_path):
    """Half an epoch on four devices, the rest on one: every example is seen once."""
    seen, ids = [], []

    def look(feed, batch):
        seen.extend(image.tobytes() for image in batch["image"])
        ids.extend(feed.example_ids(feed.taken - 1))

    few = dict(max_train_examples=48)
    train("vae", tmp_path, on_batch=look, train=dict(steps=3), mesh="data=4", data=few)
    first = list(ids)
    train("vae", tmp_path, on_batch=look, data=few)
    assert len(first) == 24
    assert sorted(ids) == list(range(48))
    from aigc_jax.experiment import build
    from aigc_jax.modalities import sources

    config = build.parse_config(tiny.recipe("vae", data=few))
    dataset = sources.load_source(config.data)
    assert seen == [dataset.train[i]["image"].tobytes() for i in ids]


# Locks ---------------------------------------------------------------------------------------


def test_a_second_run_is_refused_until_the_first_is_dead(workdir, longer):
    before = files(workdir)
    with runs.lock_holder(workdir) as process:
        with pytest.raises(UserError, match=f"process {process.pid} on {os.uname().nodename}"):
            more(workdir)
        assert files(workdir) == before
        assert aigc_jax.evaluate(str(workdir))["step"] == 6  # to look at it is no harm
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_lock_holder(str(workdir))["pid"] == process.pid
    more(workdir)
    same_runs(workdir, longer)


def test_a_second_run_in_the_same_process_is_refused(workdir):
    lock = WorkdirLock(str(workdir))
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        more(workdir)
    lock.release()
    lock.release()  # twice is no harm
    WorkdirLock(str(workdir)).release()


def test_the_lock_is_released_whatever_happens(workdir, monkeypatch):
    more(workdir)
    assert read_lock_holder(str(workdir)) == {}
    WorkdirLock(str(workdir)).release()
    with pytest.raises(KeyboardInterrupt):
        more(workdir, on_batch=runs.at_batch(9, runs.interrupt), train=dict(steps=10))
    WorkdirLock(str(workdir)).release()
    with pytest.raises(UserError):
        more(workdir, seed=3)
    WorkdirLock(str(workdir)).release()


def test_a_lock_that_could_not_be_written_is_not_held(workdir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError):
            WorkdirLock(str(workdir))
    WorkdirLock(str(workdir)).release()


RUBBISH = [b"", b"\xff\xfe\x00", b"[1, 2]", b'{"pid": "x"}', b'{"pid": -1}', b"[" * 10**5]


@pytest.mark.parametrize("system", ["locks", "no locks"])
@pytest.mark.parametrize("content", RUBBISH, ids=lambda c: repr(c[:12]))
def test_invalid_lock_file_is_ignored(content, system, tmp_path, monkeypatch):
    if system == "no locks":
        monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / "lock").write_bytes(content)
    lock = WorkdirLock(str(tmp_path))
    assert read_lock_holder(str(tmp_path))["pid"] == os.getpid()
    lock.release()


def unsupported(*_):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def test_without_locks_host_and_pid_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", unsupported)
    here = os.uname().nodename
    process = subprocess.Popen(["sleep", "600"])

    def held_by(host, pid):
        (tmp_path / "lock").write_text(json.dumps({"host": host, "pid": pid}))

    try:
        held_by(here, process.pid)
        with pytest.raises(UserError, match=f"process {process.pid} on {here}"):
            WorkdirLock(str(tmp_path))
    finally:
        process.kill()
        process.wait()
    WorkdirLock(str(tmp_path)).release()  # its holder is dead now
    held_by("elsewhere", process.pid)
    with pytest.raises(UserError, match="on elsewhere"):
        WorkdirLock(str(tmp_path))
    held_by(here, os.getpid())  # a process of the past had the same number
    WorkdirLock(str(tmp_path)).release()
    WorkdirLock(str(tmp_path)).release()


# Storage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def longest(tmp_path_factory):
    """A run of 15 steps on a disk with room, a record for each."""
    workdir = tmp_path_factory.mktemp("longest") / "w"
    train("vae", workdir, **FIFTEEN)
    return workdir


FIFTEEN = dict(train=dict(steps=15, log_every=1))
CONTINUE = dict(checkpoint=dict(on_error="continue"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for a few checkpoints: a workdir there, how to fill it, how to free it."""
    disk = tmp_path / "disk"

    def fill():
        runs.wait_for_checkpoint(disk / "w", 3)
        runs.fill(disk / "filler")

    with runs.mounted(disk, "size=3m"), runs.no_hang():
        yield disk / "w", fill, (disk / "filler").unlink


def test_a_full_disk_ends_the_run_and_loses_nothing(small_disk, saved, capsys):
    workdir, fill, free = small_disk
    with pytest.raises(StorageError) as e:
        train("vae", workdir, on_batch=runs.at_batch(5, fill))
    assert e.value.code == 74 and "\n" not in str(e.value)
    assert final_state(workdir)[1] == 3
    free()
    train("vae", workdir)
    same_runs(workdir, saved)


def test_a_full_disk_may_be_waited_out(small_disk, longest, capsys):
    """checkpoint.on_error=continue: warned of, and saved again once there is room."""
    workdir, fill, free = small_disk
    changes = [runs.at_batch(5, fill), runs.at_batch(11, free)]
    train("vae", workdir, on_batch=changes, **FIFTEEN, **CONTINUE)
    warnings = [line for line in said(capsys) if "warning" in line]
    assert warnings and all("no space left" in w.lower() for w in warnings)
    same_runs(workdir, longest)
    assert steps_of(workdir) == list(range(1, 16))
    assert checkpoint.checkpoint_steps(str(workdir)) == [15, 12]


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_the_last_checkpoint_must_be_written(small_disk, saved, on_error):
    workdir, fill, free = small_disk
    with pytest.raises(StorageError):
        train("vae", workdir, on_batch=runs.at_batch(6, fill), checkpoint=dict(on_error=on_error))
    assert final_state(workdir)[1] == 3
    free()
    train("vae", workdir)
    same_runs(workdir, saved)


class Full:
    """A disk that is full for a while, for those who write through Orbax or `os.pwrite`.

    Attributes:
      now: whether it is full.
      late: whether it holds a record still, but no checkpoint, which Orbax finds out in the
        background, and says only when asked.
      refused: how often something could not be written.
    """

    def __init__(self, patch):
        self.now, self.late, self.refused = False, False, 0
        manager, pwrite = checkpoint.ocp.CheckpointManager, os.pwrite
        save, wait = manager.save, manager.wait_until_finished
        failed = []

        def saving(manager, *args, **kwargs):
            if self.now and self.late:
                failed.append(manager)
                return True
            self._refuse()
            return save(manager, *args, **kwargs)

        def waiting(manager):
            wait(manager)
            if manager in failed:
                failed.remove(manager)
                self.refused += 1
                raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device")

        def writing(fd, data, offset):
            if self.late:
                return pwrite(fd, data, offset)
            if self.now and len(data) > 1:
                return pwrite(fd, data[: len(data) // 2], offset)
            self._refuse()
            return pwrite(fd, data, offset)

        patch.setattr(manager, "save", saving)
        patch.setattr(manager, "wait_until_finished", waiting)
        patch.setattr(os, "pwrite", writing)

    def _refuse(self):
        if self.now:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def between(self, first, last):
        """For `on_batch`: full from one batch until another."""

        def change(feed, batch):
            self.now = first <= feed.taken < last

        return change


@pytest.fixture
def full(monkeypatch):
    with runs.no_hang():
        yield Full(monkeypatch)


@pytest.fixture(params=["at once", "late"])
def full_for_checkpoints(request, full):
    full.late = request.param == "late"
    return full


def test_writing_that_fails_ends_the_run_and_loses_nothing(full_for_checkpoints, tmp_path, saved):
    full = full_for_checkpoints
    with pytest.raises(StorageError, match=r"(?i)no space left") as e:
        train("vae", tmp_path, on_batch=full.between(5, 9))
    full.now = False
    assert e.value.code == 74 and full.refused
    assert final_state(tmp_path)[1] == 3
    train("vae", tmp_path)
    same_runs(tmp_path, saved)


def test_writing_that_fails_may_be_waited_out(full_for_checkpoints, tmp_path, longest, capsys):
    full = full_for_checkpoints
    train("vae", tmp_path, on_batch=full.between(5, 11), **FIFTEEN, **CONTINUE)
    warnings = [line for line in said(capsys) if "warning" in line]
    assert warnings and all("no space left" in w.lower() for w in warnings)
    same_runs(tmp_path, longest)
    assert steps_of(tmp_path) == list(range(1, 16))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["12", "15"]
    # A kill while the disk was full would have lost nothing: each record came before its state.


def test_the_last_checkpoint_must_be_written_whatever_the_config_says(
    full_for_checkpoints, tmp_path
):
    full = full_for_checkpoints
    with pytest.raises(StorageError):
        train("vae", tmp_path, on_batch=full.between(6, 9), **CONTINUE)
    full.now = False
    assert final_state(tmp_path)[1] == 3


def test_stop_with_failed_save_is_an_error(full_for_checkpoints, tmp_path):
    full, stop = full_for_checkpoints, PreemptionHandler()
    changes = [full.between(5, 9), runs.at_batch(5, stop.request)]
    with pytest.raises(StorageError):
        train("vae", tmp_path, stop, on_batch=changes, **CONTINUE)
    full.now = False
    assert final_state(tmp_path)[1] == 3


def test_fewer_steps_than_there_are(tmp_path, saved):
    """There is nothing to do, and nothing wrong."""
    train("vae", tmp_path, checkpoint=dict(every=0))
    before = files(tmp_path / "checkpoints")
    train("vae", tmp_path, train=dict(steps=4), checkpoint=dict(every=0))
    assert files(tmp_path / "checkpoints") == before
    assert final_state(tmp_path)[1] == 6


def test_failed_save_is_not_recorded_as_saved(full, tmp_path, saved):
    """If the first one of all fails, there is nothing to go back to: the run begins again."""
    full.late = True
    with pytest.raises(StorageError, match="none"):
        train("vae", tmp_path, on_batch=full.between(3, 9))
    full.now = False
    assert checkpoint.last_saved_step(str(tmp_path)) == 0
    changes = [full.between(3, 6), runs.at_batch(6, runs.interrupt)]
    with pytest.raises(KeyboardInterrupt):
        train("vae", tmp_path, on_batch=changes, **CONTINUE)
    full.now = False
    assert checkpoint.last_saved_step(str(tmp_path)) == 0
    train("vae", tmp_path)
    same_runs(tmp_path, saved)


@pytest.mark.parametrize("on_error", ["stop", "continue"])
@pytest.mark.parametrize("kind", ["deleted", "replaced"])
def test_a_workdir_that_is_taken_away(kind, on_error, tmp_path):
    """It is an error whatever the config says: the run has nowhere to write to."""
    workdir = tmp_path / "w"

    def take_away():
        runs.wait_for_checkpoint(workdir, 3)
        os.rename(workdir, tmp_path / "elsewhere")
        if kind == "replaced":
            workdir.mkdir()

    change = runs.at_batch(5, take_away)
    with runs.no_hang(), pytest.raises(StorageError, match=str(workdir)):
        train("vae", workdir, on_batch=change, checkpoint=dict(on_error=on_error))
    assert not workdir.exists() or files(workdir) == {}


def test_a_workdir_that_is_taken_away_at_the_very_end(tmp_path, monkeypatch):
    """After the last checkpoint was begun: a run that says it has ended well has one."""
    workdir = tmp_path / "w"
    original = CheckpointWriter.save

    def save(self, step, *args):
        original(self, step, *args)
        if step == 6:
            self.wait()
            shutil.rmtree(workdir)

    monkeypatch.setattr(CheckpointWriter, "save", save)
    with runs.no_hang(), pytest.raises(StorageError):
        train("vae", workdir)


def no_training(feed, batch):
    raise AssertionError("training has begun")


@pytest.mark.parametrize("kind", ["file", "below a file", "read only"])
def test_a_workdir_that_cannot_be_written_is_refused_at_once(kind, tmp_path):
    workdir = tmp_path / "w"
    with contextlib.ExitStack() as stack:
        if kind == "read only":
            stack.enter_context(runs.mounted(workdir, "size=1m,ro"))
        else:
            workdir.write_text("a file")
        place = workdir / "w" if kind == "below a file" else workdir
        with pytest.raises(StorageError, match=str(workdir)) as e:
            train("vae", place, on_batch=no_training)
        assert e.value.code == 74 and "\n" not in str(e.value)


def test_storage_error_exit_status(tmp_path):
    """The command line turns them into a sentence and exit code 74."""
    (tmp_path / "file").write_text("")
    (tmp_path / "recipe.py").write_text(
        "import ml_collections\ndef get_config():\n"
        "    return ml_collections.ConfigDict(dict(data=dict(source='digits', batch_size=8),"
        " model=dict(name='mlp', latent=2, hidden=(4,)), objective=dict(name='vae')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "aigc_jax.main", "train", f"--config={tmp_path}/recipe.py",
         f"--workdir={tmp_path}/file"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 74, done.stderr
    assert done.stderr.startswith("aigc: error: ") and done.stderr.count("\n") == 1


# Records -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run that was killed at step 6 after it had saved step 3; a record for each step."""
    workdir = tmp_path_factory.mktemp("cut") / "w"
    with pytest.raises(KeyboardInterrupt):
        train("vae", workdir, on_batch=runs.at_batch(6, runs.interrupt), **FIFTEEN)
    assert final_state(workdir)[1] == 3 and steps_of(workdir) == [1, 2, 3, 4, 5]
    return workdir


def test_records_that_were_cut_off_anywhere_are_dropped(cut, tmp_path):
    """Whatever a kill left of what came after the checkpoint; the records before are as before."""
    content = (cut / "metrics.jsonl").read_bytes()
    lines = content.splitlines(keepends=True)
    safe = sum(map(len, lines[:3]))
    rng = np.random.default_rng(0)
    ends = {safe, safe + 1, len(content) - 1, *rng.integers(safe, len(content), 60).tolist()}
    for end in ends:
        for rubbish in (b"", bytes(50), b"\xff{"):
            (tmp_path / "metrics.jsonl").write_bytes(content[:end] + rubbish)
            metric_log.MetricsFile(str(tmp_path), 3).close()
            assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[:3])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_torn_last_line_is_written_again(share, cut, longest, tmp_path):
    workdir = shutil.copytree(cut, tmp_path / "w")
    path = workdir / "metrics.jsonl"
    safe = sum(map(len, path.read_bytes().splitlines(keepends=True)[:3]))
    os.truncate(path, safe + int(share * (path.stat().st_size - safe)))
    train("vae", workdir, **FIFTEEN)
    same_runs(workdir, longest)


def test_unwritten_records_are_written_first_next_time(tmp_path, full):
    records = metric_log.MetricsFile(str(tmp_path), 0)
    wanted = [{"step": n, "kind": "train", "loss": n / 3} for n in range(1, 6)]
    for record in wanted:
        full.now = record["step"] in (2, 3)
        with pytest.raises(OSError) if full.now else contextlib.nullcontext():
            records.write(record)
    records.close()
    assert metric_log.read_metrics(str(tmp_path)) == wanted


def check_events(workdir):
    """TensorBoard shows each number of metrics.jsonl once."""
    wanted = [
        (f"{r['kind']}/{key}", r["step"], np.float32(value))
        for r in metric_log.read_metrics(str(workdir))
        for key, value in r.items()
        if isinstance(value, (int, float)) and key != "step"
    ]
    assert sorted(runs.events(workdir)) == sorted(wanted)


def test_tensorboard_shows_what_metrics_jsonl_says(cut, tmp_path, longest, monkeypatch):
    """Also of a run that was killed and went on, even within the same second."""
    check_events(longest)
    clock = types.SimpleNamespace(time=lambda: 1_900_000_000.0)
    monkeypatch.setattr("tensorboardX.event_file_writer.time", clock)
    workdir = shutil.copytree(cut, tmp_path / "w")
    for steps in (9, 11, 15):
        train("vae", workdir, train=dict(steps=steps, log_every=1))
    check_events(workdir)


def test_a_checkpoint_under_another_steps_name_is_found_out(workdir, longer, capsys):
    folder = workdir / "checkpoints"
    shutil.rmtree(folder / "6")
    shutil.copytree(folder / "3", folder / "6")
    shutil.copytree(folder / "3", folder / "999999999999")
    more(workdir)
    assert "checkpoint 6" in (text := capsys.readouterr().err) and "step 3" in text
    same_runs(workdir, longer)


@pytest.mark.parametrize("line", [b"\x00\x00", b'{"step": 1e', b"9" * 5000, b"[" * 100_000, b"3"])
def test_a_damaged_record_takes_no_other_with_it(line, workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    steps = [r["step"] for r in metric_log.read_metrics(str(workdir))]
    path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n")
    assert [r["step"] for r in metric_log.read_metrics(str(workdir))] == steps
