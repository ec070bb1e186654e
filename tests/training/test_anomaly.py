"""Training that goes wrong: steps that are not finite, losses that jump, memory that runs out."""

import contextlib
import json
import os
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import runs, tiny
from helpers.runs import files, final_state, records, said, steps_of, train

from aigc_jax.core.config import AnomalyConfig
from aigc_jax.core.errors import NotFinite, OutOfMemory, Stopped, StorageError, UserError
from aigc_jax.core.metrics import Mean
from aigc_jax.data.loader import DataLoader
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.experiment import build, restore
from aigc_jax.modalities import sources
from aigc_jax.runs.diagnose import diagnose, summary
from aigc_jax.runs.trainer import make_loader
from aigc_jax.tools import doctor
from aigc_jax.training import oom
from aigc_jax.training.anomaly import AnomalyDetector, TrainingAnomaly
from aigc_jax.training.checkpoint import CheckpointReader, CheckpointWriter

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SLOW = [pytest.param(f, marks=pytest.mark.slow) for f in ("lm", "gan", "diffusion")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of 6 steps with checkpoints 3 and 6, and a record for each step."""
    workdir = tmp_path_factory.mktemp("saved") / "w"
    train("vae", workdir, train=dict(log_every=1))
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "w")


def state_at(workdir, step):
    with contextlib.closing(CheckpointReader(str(workdir))) as reader:
        return jax.device_get(restore.load_checkpoint(reader, step, reader.contents(step))[1])


# The detector alone -----------------------------------------------------------------------------


def metrics(loss=1.0, skipped=0.0, **others):
    values = {"loss": loss, "skipped": skipped, **others}
    # With a weight, as a loss has that is summed over a batch.
    return {k: Mean(np.float32(4 * v), np.float32(4)) for k, v in values.items()}


def verdicts(detector, losses, first=1):
    """The steps at which a detector objects."""
    found = []
    for step, loss in enumerate(losses, first):
        try:
            detector.check(step, loss if isinstance(loss, dict) else metrics(loss))
        except TrainingAnomaly as trouble:
            assert trouble.step == step
            found.append(step)
    return found


SKIPPED = metrics(0.0, 1.0)


def test_skipped_steps_are_counted_in_a_row():
    detector = AnomalyDetector(AnomalyConfig(max_skipped=3))
    assert verdicts(detector, [SKIPPED, SKIPPED, 1.0, SKIPPED, SKIPPED, 1.0]) == []
    assert verdicts(detector, [SKIPPED, SKIPPED, SKIPPED], first=7) == [9]
    with pytest.raises(TrainingAnomaly, match="step 3: 3 steps"):
        verdicts_of = AnomalyDetector(AnomalyConfig(max_skipped=3))
        for step in (1, 2, 3):
            verdicts_of.check(step, SKIPPED)


def test_a_limit_may_be_lowered_below_what_was_skipped():
    detector = AnomalyDetector(AnomalyConfig(max_skipped=2))
    detector.seek({"skipped": 4, "rollbacks": 0, "losses": {}})
    with pytest.raises(TrainingAnomaly, match="5 steps in a row"):
        detector.check(5, {"skipped": Mean(np.float32(1), np.float32(1))})


def test_no_limit_of_skipped_steps():
    detector = AnomalyDetector(AnomalyConfig(max_skipped=0))
    assert verdicts(detector, [SKIPPED] * 100) == [] and not detector.needs_sync


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_detector_needs_sync_before_the_last_skipped_step(limit):
    detector = AnomalyDetector(AnomalyConfig(max_skipped=limit))
    for step in range(1, limit):
        assert detector.needs_sync == (step == limit)
        detector.check(step, SKIPPED)
    assert detector.needs_sync
    with pytest.raises(TrainingAnomaly):
        detector.check(limit, SKIPPED)


def spikes(**options):
    return AnomalyDetector(
        AnomalyConfig(**{"spike_threshold": 10.0, "spike_history": 8, **options})
    )


def test_loss_spike_is_detected():
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    assert verdicts(spikes(), [*(5 + noise), 9.0, 5.0]) == [41]
    assert verdicts(spikes(), [*(-5 + noise), -1.0, -5.0]) == [41]  # a loss may be negative
    assert verdicts(spikes(), [*(5 + noise), 1.0]) == []  # down is no harm
    assert verdicts(spikes(spike_threshold=0.0), [*(5 + noise), 1e9]) == []
    assert verdicts(spikes(spike_threshold=1e4), [*(5 + noise), 9.0]) == []
    with pytest.raises(TrainingAnomaly, match=r"step 11: loss"):
        detector = spikes()
        for step, loss in enumerate([*(5 + noise[:10]), 9.0], 1):
            detector.check(step, metrics(loss))


def test_a_loss_is_compared_with_the_last_ones_only():
    assert verdicts(spikes(), np.linspace(100, 1, 200)) == []
    assert verdicts(spikes(), [*np.linspace(1, 100, 200), 1000.0]) == [201]
    assert verdicts(spikes(), [1.0, 1.1, 0.9, 50.0]) == []  # too few to tell
    assert verdicts(spikes(), [1.0, 1.1, 0.9, 1.0, 50.0]) == [5]
    assert verdicts(spikes(), [7.0] * 20 + [7.001, 7.0, 7.06, 7.08]) == [24]  # ripples are none


def test_spikes_are_not_added_to_the_history():
    detector = spikes()
    assert verdicts(detector, [1.0, 1.1, 0.9, 1.0, *[50.0] * 20]) == list(range(5, 25))


def test_losses_of_every_player_are_checked_for_spikes():
    def both(critic, generator, other=1.0):
        values = {"critic/loss": critic, "generator/loss": generator, "critic/r1": other}
        return metrics(**values)

    quiet = [both(1 + 0.1 * (i % 3), 8 + 0.1 * (i % 3)) for i in range(10)]
    assert verdicts(spikes(), [*quiet, both(1.0, 8.0, 1e9)]) == []
    assert verdicts(spikes(), [*quiet, both(8.0, 8.0)]) == [11]
    assert verdicts(spikes(), [*quiet, both(1.0, 80.0)]) == [11]


@pytest.mark.parametrize("at", [0, 1, 5, 17, 30])
def test_a_detector_continues_from_its_position(at):
    """Through JSON, as checkpoints keep it."""
    rng = np.random.default_rng(at)
    losses = [SKIPPED if rng.random() < 0.4 else float(rng.lognormal(0, 3)) for _ in range(60)]
    detector, first = spikes(max_skipped=3), spikes(max_skipped=3)
    wanted = verdicts(detector, losses)
    found = verdicts(first, losses[:at])
    second = spikes(max_skipped=3)
    first.rollbacks = 2
    second.seek(json.loads(json.dumps(first.position())))
    assert second.rollbacks == 2 and second.needs_sync == first.needs_sync
    assert found + verdicts(second, losses[at:], first=at + 1) == wanted
    assert len(wanted) > 3


# Steps that are not finite -------------------------------------------------------------------


def poisoned(*numbers):
    """An example's weight is NaN in these batches, counted from 1: so is every player's loss."""

    def change(feed, batch):
        if feed.taken in numbers:
            batch["weight"].flat[3] = np.nan

    return change


@pytest.mark.parametrize("family", ["vae", *SLOW])
def test_nonfinite_batch_is_skipped_and_counted(family, tmp_path, capsys):
    every = dict(checkpoint=dict(every=1, keep=9), train=dict(steps=4, log_every=1))
    train(family, tmp_path, on_batch=poisoned(3), **every)
    assert "1 steps were skipped" in said(capsys)[-1]
    before, after, last = (state_at(tmp_path, n) for n in (2, 3, 4))
    for part in ("params", "opt_state", "ema", "mutables"):
        chex.assert_trees_all_equal(getattr(before, part), getattr(after, part))
    for player, params in after.params.items():
        old, new = jax.tree.leaves(params), jax.tree.leaves(last.params[player])
        assert any((a != b).any() for a, b in zip(old, new, strict=True)), player
    assert [int(s.skipped) for s in (before, after, last)] == [0, 1, 1]
    assert [r["skipped"] for r in records(tmp_path)] == [0, 0, 1, 0]


@pytest.fixture(scope="module")
def given_up(tmp_path_factory):
    """A run of which every step from 4 on is bad: its folder, and the error."""
    workdir = tmp_path_factory.mktemp("given_up") / "w"
    changes = dict(anomaly=dict(max_skipped=3), train=dict(steps=20))
    with pytest.raises(NotFinite) as e:
        train("vae", workdir, on_batch=poisoned(*range(4, 99)), **changes)
    return workdir, e.value


@pytest.fixture(scope="module")
def sixth_batch():
    """The examples of step 6, by another iterator over the same data."""
    config = build.parse_config(tiny.recipe("vae"))
    dataset = sources.load_source(config.data)
    batches = DataLoader(dataset.train, config.data.batch_size, config.seed)
    for _ in range(6):
        batch = batches.next()
    ids = batches.example_ids(5)
    np.testing.assert_array_equal([dataset.train[i]["image"] for i in ids], batch["image"])
    return ids, batch


def test_too_many_bad_steps_end_the_run_with_a_sentence(given_up, sixth_batch):
    workdir, error = given_up
    message = str(error)
    assert error.code == 70 and "\n" not in message
    assert "step 6: 3 steps" in message
    assert "its examples are " + ", ".join(map(str, sixth_batch[0][:3])) in message
    assert "weight" in message  # the first thing that is not finite
    assert str(workdir / "nonfinite" / "step_0000006") in message
    assert f"aigc doctor --workdir={workdir}" in message


def test_nonfinite_dump_holds_plain_arrays(given_up, sixth_batch):
    place = given_up[0] / "nonfinite" / "step_0000006"
    assert sorted(os.listdir(place)) == ["batch.npz", "report.json", "state.npz"]
    report = json.loads((place / "report.json").read_text())
    assert report["step"] == 6 and report["examples"] == sixth_batch[0]
    with np.load(place / "batch.npz", allow_pickle=False) as batch:
        np.testing.assert_array_equal(batch["image"], sixth_batch[1]["image"])
        np.testing.assert_array_equal(batch["label"], sixth_batch[1]["label"])
        assert np.isnan(batch["weight"]).sum() == 1
    state = state_at(given_up[0], 3)  # no step since has moved anything
    with np.load(place / "state.npz", allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    assert found["step"] == 5
    for part in ("params", "opt_state", "ema"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, part)):
            name = f"{part}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
            np.testing.assert_array_equal(found[name], leaf)


def test_bad_steps_in_a_row_are_counted_over_an_interruption(tmp_path):
    stop, changes = PreemptionHandler(), dict(anomaly=dict(max_skipped=3), train=dict(steps=20))
    bad = poisoned(*range(4, 99))
    with pytest.raises(Stopped):
        train("vae", tmp_path, stop, on_batch=[bad, runs.at_batch(5, stop.request)], **changes)
    with pytest.raises(NotFinite, match="step 6: 3 steps"):
        train("vae", tmp_path, on_batch=bad, **changes)
    # A higher limit lets the run continue.
    with pytest.raises(NotFinite, match="step 8: 5 steps"):
        train("vae", tmp_path, on_batch=bad, **{**changes, "anomaly": dict(max_skipped=5)})


def test_max_skipped_zero_never_ends_the_run(tmp_path):
    train("vae", tmp_path, on_batch=poisoned(*range(4, 99)), anomaly=dict(max_skipped=0))
    state, step = final_state(tmp_path)
    assert step == 6 and int(state.skipped) == 3


def with_parameter(workdir, key, value):
    """Saves step 7 of a run as step 6 with another value in the parameters below `key`."""
    with contextlib.closing(CheckpointReader(str(workdir))) as reader:
        contents = reader.contents(6)
        _, state = restore.load_checkpoint(reader, 6, contents)

    def change(path, x):
        return jnp.full_like(x, value) if key in jax.tree_util.keystr(path) else x

    params = jax.tree_util.tree_map_with_path(change, state.params)
    config = {k: v for k, v in contents["config"].items() if k != "checksums"}
    writer = CheckpointWriter(str(workdir), 2, 6)
    writer.save(7, state.replace(params=params, step=state.step + 1), contents["data"], config)
    writer.wait()
    writer.close()


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("spread", np.nan, "the state itself is not finite: params model/decoder/spread"),
        ("spread", 3e38, "the activations spread"),
    ],
    ids=["nan", "huge"],
)
def test_the_first_thing_that_is_not_finite_is_named(key, value, words, workdir, capsys):
    with_parameter(workdir, key, value)
    with pytest.raises(NotFinite) as e:
        train("vae", workdir, train=dict(steps=20), anomaly=dict(max_skipped=2))
    assert "step 9: 2 steps in a row" in str(e.value)
    assert words in str(e.value)
    capsys.readouterr()
    assert doctor.check_workdir(str(workdir)) == 1
    out = capsys.readouterr().out
    assert words in out and "turn 1. model" in out and "largest parameter" in out


@pytest.mark.parametrize(
    "family",
    ["vae", *[pytest.param(f, marks=pytest.mark.slow) for f in ("lm", "gan", "diffusion")]],
)
def test_modules_are_named_in_every_family(family):
    """Of a NaN deep in the model: the parameter, and the module whose output it spoils first."""
    deep = {
        "lm": ("layers/mlp", "layers"),
        "gan": ("critic", "critic"),
        "vae": ("hidden_0", "encoder/hidden_0"),
        "diffusion": ("middle", "middle"),
    }
    parts = tiny.make(family)
    params = tiny.params(parts, family)
    paths = [jax.tree_util.keystr(k, simple=True, separator="/")
             for k, x in jax.tree_util.tree_leaves_with_path(params) if x.ndim > 1]  # fmt: skip
    inside = [p for p in paths if deep[family][0] in p] or paths[len(paths) // 2 :]
    bad = inside[0]
    params = jax.tree_util.tree_map_with_path(
        lambda k, x: (
            x * np.float32(np.nan)
            if jax.tree_util.keystr(k, simple=True, separator="/") == bad
            else x
        ),
        params,
    )
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), parts.state_shapes())
    report = diagnose(parts, zeros.replace(params=params), tiny.batch(family))
    assert report["arrays"]["params"] == [bad]
    assert bad in summary(report)
    assert list(report["turns"]) == [f"{i + 1}. {p}" for i, p in enumerate(parts.objective.turns)]
    first = next(iter(report["turns"].values()))
    assert first["loss"] == "nan" and first["gradients"]
    # "model/encoder/hidden_0/kernel" spoils the output of the module "hidden_0".
    assert first["activations"][0].split("/")[-1] in bad.split("/")
    json.dumps(report)


# Going back ----------------------------------------------------------------------------------


def spoiled(*numbers, seen=None):
    """The images of these batches, counted from 1, are noise: the loss jumps."""

    def change(feed, batch):
        if feed.taken in numbers:
            rng = np.random.default_rng(feed.taken)
            batch["image"][:] = 255 * rng.integers(0, 2, batch["image"].shape)
        if seen is not None:
            seen.append(feed.taken)

    return change


def watched(steps=12, **anomaly):
    anomaly = {"spike_threshold": 3.5, "spike_history": 4, "max_rollbacks": 1, **anomaly}
    return dict(anomaly=anomaly, train=dict(steps=steps, log_every=5))


RECORDED = [3, 5, 6, 9, 10, 12]  # every fifth, and where a checkpoint is


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    """A run of 12 steps whose 8th batch is noise: its folder, and the batches that it took."""
    workdir, seen = tmp_path_factory.mktemp("rolled_back") / "w", []
    train("vae", workdir, on_batch=spoiled(8, seen=seen), **watched())
    return workdir, seen


def test_spike_rolls_back_and_continues_with_later_data(rolled_back, tmp_path):
    """To step 6, and from there with the 9th batch: bit for bit, as if the 7th were the 9th."""
    rolled, seen = rolled_back
    # The 9th was on its way when the metrics of step 8 arrived.
    assert seen == [*range(1, 10), *range(9, 15)]
    train("vae", tmp_path, train=dict(steps=6, log_every=5))

    def from_the_ninth(run, dataset):
        feed = make_loader(run, dataset)
        feed.seek = lambda position: feed.skip_to(8)
        return feed

    train("vae", tmp_path, make_feed=from_the_ninth, train=dict(steps=12, log_every=5))
    chex.assert_trees_all_equal(final_state(rolled), final_state(tmp_path))
    assert steps_of(rolled) == RECORDED
    found = records(rolled)
    assert [r.pop("rollbacks", 0) for r in found] == [0] * 3 + [1] * 3
    assert found == records(tmp_path)


def test_rollback_is_logged(tmp_path, capsys):
    train("vae", tmp_path, on_batch=spoiled(8), **watched(steps=9))
    (line,) = [line for line in said(capsys) if "rolling back" in line]
    assert "step 8: loss" in line and "back to step 6" in line


def test_tensorboard_forgets_what_was_taken_back(rolled_back):
    tags = [(tag, step) for tag, step, _ in runs.events(rolled_back[0])]
    assert len(tags) == len(set(tags))
    assert [step for tag, step in tags if tag == "train/loss"] == RECORDED


@pytest.mark.parametrize(
    "how, number", [("stopped", 9), ("stopped", 11), ("killed", 10), ("killed", 13)]
)
def test_run_can_be_interrupted_after_a_rollback(how, number, rolled_back, tmp_path):
    """Before its next checkpoint it goes back once more: to the same end."""
    stop, seen = PreemptionHandler(), []

    def change(feed, batch):
        seen.append(feed.taken)
        if seen[-1] == number and seen.count(9) == 2:
            stop.request() if how == "stopped" else runs.interrupt()

    with pytest.raises(Stopped if how == "stopped" else KeyboardInterrupt):
        train("vae", tmp_path, stop, on_batch=[spoiled(8), change], **watched())
    train("vae", tmp_path, on_batch=spoiled(8), **watched())
    chex.assert_trees_all_equal(final_state(rolled_back[0]), final_state(tmp_path))
    assert records(rolled_back[0]) == records(tmp_path)


def test_rollback_ignores_preemption_checkpoints(rolled_back, tmp_path):
    """A stop saves step 7, which is on no grid; the jump at step 8 leads back to step 6."""
    stop = PreemptionHandler()
    with pytest.raises(Stopped):
        changes = [spoiled(8), runs.at_batch(7, stop.request)]
        train("vae", tmp_path, stop, on_batch=changes, **watched())
    assert final_state(tmp_path)[1] == 7
    train("vae", tmp_path, on_batch=spoiled(8), **watched())
    chex.assert_trees_all_equal(final_state(rolled_back[0]), final_state(tmp_path))
    assert records(rolled_back[0]) == records(tmp_path)
    assert not (tmp_path / "damaged").exists()


def test_rollback_limit_ends_the_run(tmp_path, sixth_batch):
    with pytest.raises(NotFinite, match="loss") as e:
        train("vae", tmp_path, on_batch=spoiled(8, 13), **watched(steps=20))
    # After going back, the 9th batch is that of step 7: the 13th that of step 11.
    assert "step 11:" in str(e.value) and e.value.code == 70
    report = json.loads((tmp_path / "nonfinite" / "step_0000011" / "report.json").read_text())
    config = build.parse_config(tiny.recipe("vae"))
    data = sources.load_source(config.data).train
    assert report["examples"] == DataLoader(data, 8, config.seed).example_ids(12)
    # Nothing was infinite, and it must not be said that something was.
    assert "made it so" not in str(e.value) and "not finite" not in str(e.value)


def test_spike_ends_the_run_without_rollbacks(tmp_path):
    with pytest.raises(NotFinite, match="step 8: loss"):
        train("vae", tmp_path, on_batch=spoiled(8), **watched(max_rollbacks=0))
    assert final_state(tmp_path)[1] == 6


def test_rollback_without_checkpoint_restarts(tmp_path):
    """Before the first checkpoint: a fresh state, and the data after the trouble."""
    seen = []
    unsaved = dict(checkpoint=dict(every=0), **watched(steps=8))
    train("vae", tmp_path / "back", on_batch=spoiled(4, seen=seen), **unsaved)
    assert seen == [*range(1, 6), *range(5, 13)]
    assert steps_of(tmp_path / "back") == [5, 8]

    def from_the_fifth(run, dataset):
        feed = make_loader(run, dataset)
        skip = feed.skip_to
        feed.skip_to = lambda taken: skip(taken + 4)
        return feed

    train("vae", tmp_path / "other", make_feed=from_the_fifth, **unsaved)
    chex.assert_trees_all_equal(
        final_state(tmp_path / "back")[0].params, final_state(tmp_path / "other")[0].params
    )


def test_skipped_steps_roll_back(tmp_path):
    """The skipped steps are taken back with all the others."""
    seen = []
    changes = [poisoned(8, 9), spoiled(seen=seen)]
    train("vae", tmp_path, on_batch=changes, **watched(max_skipped=2, spike_threshold=0.0))
    assert seen == [*range(1, 10), *range(10, 16)]
    assert int(final_state(tmp_path)[0].skipped) == 0
    assert [r.get("rollbacks", 0) for r in records(tmp_path)] == [0] * 3 + [1] * 3
    assert not (tmp_path / "nonfinite").exists()


def test_rollback_skips_a_damaged_checkpoint(tmp_path, capsys):
    def damage():
        runs.wait_for_checkpoint(tmp_path, 6)
        shutil.rmtree(tmp_path / "checkpoints" / "6" / "state")

    train("vae", tmp_path, on_batch=[spoiled(8), runs.at_batch(8, damage)], **watched())
    lines = said(capsys)
    assert any("checkpoint 6" in line and "damaged" in line for line in lines)
    assert any("back to step 3" in line for line in lines)
    assert steps_of(tmp_path) == RECORDED
    assert os.listdir(tmp_path / "damaged") == ["6"]


# The doctor ----------------------------------------------------------------------------------


def examined(workdir, capsys):
    """What `aigc doctor` says of a workdir, its exit status; it must leave all as it is."""
    capsys.readouterr()
    before = files(workdir)
    code = doctor.check_workdir(str(workdir))
    assert files(workdir) == before
    return capsys.readouterr().out, code


def test_doctor_on_a_healthy_run(saved, capsys):
    out, code = examined(saved, capsys)
    assert code == 0
    assert "checkpoint 6: intact" in out and "checkpoint 3: intact" in out
    assert "vae, 6 steps" in out and "step 6" in out
    assert "in use" not in out and "damaged" not in out


def test_the_doctor_on_damage(workdir, capsys):
    shutil.rmtree(workdir / "checkpoints" / "6" / "data")
    out, code = examined(workdir, capsys)
    assert code == 1 and "checkpoint 6: damaged" in out and "checkpoint 3: intact" in out
    train("vae", workdir, train=dict(steps=7))
    out, code = examined(workdir, capsys)
    assert code == 0 and "moved aside" in out and "6 in" in out
    shutil.rmtree(workdir / "checkpoints" / "7")
    out, code = examined(workdir, capsys)
    assert code == 1 and "checkpoint 7 was saved, but is missing" in out
    shutil.rmtree(workdir / "checkpoints")
    out, code = examined(workdir, capsys)
    assert code == 1 and "no checkpoint" in out


def test_the_doctor_on_bad_steps(given_up, capsys, sixth_batch):
    out, code = examined(given_up[0], capsys)
    assert code == 1
    assert "checkpoint 3: intact" in out
    assert "step 6: 3 steps in a row were not finite; the data are not finite: weight" in out
    assert f"examples of the batch: {', '.join(map(str, sixth_batch[0]))}" in out
    assert "loss nan" in out and "to try: check these examples" in out


def test_the_doctor_on_a_run_that_is_running(workdir, capsys):
    here = os.uname().nodename
    with runs.lock_holder(workdir) as process:
        assert f"in use by process {process.pid} on {here}" in examined(workdir, capsys)[0]
        process.kill()
        process.wait()
        out, code = examined(workdir, capsys)
    assert f"process {process.pid} on {here}) was killed" in out and code == 0


RUBBISH = [b"{}", b"[]", b"1", b'{"step": 3}', b"[" * 10**5, b"\xff", b'{"pid": 1}']


@pytest.mark.parametrize("content", RUBBISH, ids=lambda c: repr(c[:12]))
def test_doctor_on_invalid_files(content, workdir, capsys):
    """It says what it can."""
    (workdir / "nonfinite" / "step_1").mkdir(parents=True)
    for name in ("lock", "saved.json", "nonfinite/step_1/report.json"):
        (workdir / name).write_bytes(content)
    assert "checkpoint 6: intact" in examined(workdir, capsys)[0]


def test_doctor_without_a_run(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            doctor.check_workdir(str(path))


# Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, model, largest",
    [
        ("vae", dict(name="mlp", hidden=(2**20, 2**20), channels=None), "1048576×1048576"),
        ("lm", dict(width=2**17), "131072×"),
    ],
    ids=["vae", "lm"],
)
def test_model_too_large_for_memory_is_refused_first(family, model, largest, tmp_path):
    with pytest.raises(OutOfMemory) as e:
        train(family, tmp_path / "w", model=model, data=dict(batch_size=64))
    message = str(e.value)
    assert e.value.code == 71 and "\n" not in message
    assert "GiB" in message and largest in message and "params/model/" in message
    assert "make the model smaller" in message
    assert not (tmp_path / "w").exists()


def test_the_limit_is_what_the_device_has(monkeypatch):
    parts = tiny.make("vae")
    shapes, batch = parts.state_shapes(), tiny.batch("vae")
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    assert oom.tree_bytes(shapes) == size
    for limit, fits in ((0, True), (size, True), (size - 1, False)):
        monkeypatch.setattr(oom, "device_memory", lambda limit=limit: limit)
        with contextlib.nullcontext() if fits else pytest.raises(OutOfMemory):
            oom.check_fits(shapes, batch)


def test_the_largest_arrays_are_named():
    tree = {"a": np.zeros((3, 5), np.float32), "b": {"c": np.zeros(100, np.uint8)}, "d": 1.5}
    tree["d"] = np.float32(1.5)
    assert oom.largest_arrays({"x": tree}, 2) == [("x/b/c", (100,), 100), ("x/a", (3, 5), 60)]
    assert oom.tree_bytes(tree) == 164


def beyond_memory():
    """More than a 64-bit address can name: refused on every machine."""
    return jax.jit(lambda: jnp.zeros((10**8, 10**7)) + 1)().block_until_ready()


def python_memory():
    raise MemoryError


@pytest.mark.parametrize("action", [beyond_memory, python_memory])
def test_memory_that_runs_out_is_explained(action):
    shapes, batch = tiny.make("vae").state_shapes(), tiny.batch("vae")
    with pytest.raises(OutOfMemory) as e, oom.explain_oom(shapes, batch):
        action()
    message = str(e.value)
    assert e.value.code == 71 and "\n" not in message and e.value.__cause__ is not None
    assert "params/model/" in message and "lower data.batch_size" in message


def test_memory_that_runs_out_in_training_is_explained(tmp_path):
    with pytest.raises(OutOfMemory):
        train("vae", tmp_path, on_batch=runs.at_batch(5, beyond_memory))
    assert final_state(tmp_path)[1] == 3


@pytest.mark.parametrize(
    "error",
    [
        ValueError("something else"),
        KeyboardInterrupt(),
        # So TensorStore says that a disk is full.
        StorageError("cannot be written (RESOURCE_EXHAUSTED: No space left on device)"),
    ],
    ids=["ValueError", "KeyboardInterrupt", "StorageError"],
)
def test_other_errors_are_not_about_memory(error):
    parts = tiny.make("vae")
    with pytest.raises(type(error)) as e, oom.explain_oom(parts.state_shapes(), tiny.batch("vae")):
        raise error
    assert e.value is error
