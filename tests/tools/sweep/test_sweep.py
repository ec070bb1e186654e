"""`aigc sweep`: what is searched, and that trials are shared, pruned, resumed and reported."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.paths import ROOT

pytest.importorskip("optuna")
from helpers import runs
from PIL import Image

from aigc_jax.core.errors import Stopped, UserError
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.tools.sweep import sweep as sweep_lib
from aigc_jax.tools.sweep import trials
from aigc_jax.tools.sweep.search_space import Range, Search
from aigc_jax.tools.sweep.sweep import sweep

RECIPE = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict(dict(
        optim=dict(lr=1e-3, name="adam"),
        model=dict(width=8, channels=(4, 8)),
        eval=dict(every=2, image=dict(fidelity=True)),
    ))
"""
FIELDS = {"optim.lr": 1e-3, "optim.name": "adam", "model.width": 8, "eval.image.fidelity": True}

# What is searched ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("optim.lr=1e-4..1e-2:log", Range("optim.lr", 1e-4, 1e-2, True)),
        ("optim.lr = 0 .. 1", Range("optim.lr", 0.0, 1.0)),
        ("model.width=8..64", Range("model.width", 8, 64)),
        ("model.width=8,16,32", Range("model.width", choices=(8, 16, 32))),
        ("optim.name=adam,lion", Range("optim.name", choices=("adam", "lion"))),
        ("eval.image.fidelity=true,false", Range("eval.image.fidelity", choices=(True, False))),
    ],
)
def test_ranges(text, expected):
    assert Range.parse(text, FIELDS) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("optim.rl=1,2", "no key 'optim.rl': did you mean 'optim.lr'"),
        ("optim.lr=fast,slow", "optim.lr=0.001: write optim.lr=a,b,c"),
        ("optim.lr=1..0", "write optim.lr=a,b,c"),
        ("optim.lr=0..1:log", "write optim.lr=a,b,c"),
        ("optim.lr=0..1:sqrt", "write optim.lr=a,b,c"),
        ("optim.lr=0.1", "write optim.lr=a,b,c"),
        ("model.width=1.5..4", "write model.width=a,b,c"),
        ("optim.name=a..b", "write optim.name=a,b,c"),
        ("model.width=8,8", "write model.width=a,b,c"),
        ("eval.image.fidelity=maybe,no", "write eval.image.fidelity=a,b,c"),
    ],
)
def test_invalid_range_is_rejected(text, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        Range.parse(text, FIELDS)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return str(path)


def search(config, *texts, **options):
    from aigc_jax.experiment.recipes import load_recipe

    recipe = load_recipe(config)
    recipe.update(options.pop("fields", {}))
    return Search.of(recipe, texts or ["optim.lr=1e-4..1e-2:log", "model.width=8,16"], **options)


def test_a_file_of_ranges(config, tmp_path):
    path = tmp_path / "space"
    path.write_text("# rates\noptim.lr=1e-4..1e-2:log  # of Adam\n\nmodel.width=8,16\n")
    assert search(config, str(path)) == search(config)
    with pytest.raises(UserError, match="KEY=values"):
        search(config, "nowhere")
    with pytest.raises(UserError, match="each field once"):
        search(config, "model.width=8,16", str(path))


def test_a_recipe_that_never_evaluates_cannot_be_searched(config):
    with pytest.raises(UserError, match=r"--config\.eval\.every=STEPS"):
        search(config, fields=dict(eval=dict(every=0)))


def test_the_flags_of_the_command_are_those_of_the_trials(config):
    changed = search(config, fields=dict(model=dict(channels=(2,)), eval=dict(every=4))).config
    assert sorted(sweep_lib.overrides(config, changed)) == [
        "--config.eval.every=4",
        "--config.model.channels=(2,)",
    ]


# Trials, of a program that stands for `aigc train` ------------------------------------------------

# Its loss falls to |log10(lr) + 3| + 8/width; it evaluates five times.
TRAIN = """
import json, math, os, signal, sys, time
flags = dict(w.lstrip("-").split("=", 1) for w in sys.argv[1:] if "=" in w)
workdir, lr = flags["workdir"], float(flags["config.optim.lr"])
width = int(flags["config.model.width"])
with open(os.path.join(workdir, "starts"), "a") as f:
    f.write(" ".join(sys.argv) + chr(10))
if os.path.exists(os.path.join(workdir, "..", "..", "exit")):
    sys.exit(int(open(os.path.join(workdir, "..", "..", "exit")).read()))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
path = os.path.join(workdir, "metrics.jsonl")
done = sum(1 for _ in open(path)) if os.path.exists(path) else 0
for step in range(done + 1, 6):
    while os.path.exists(os.path.join(workdir, "..", "..", "hold")) and step > 2:
        time.sleep(0.01)
    loss = abs(math.log10(lr) + 3) + 8 / width + 1 / step
    with open(path, "a") as f:
        f.write(json.dumps(dict(step=step, kind="eval", loss=loss)) + chr(10))
"""


@pytest.fixture
def quick(monkeypatch):
    """Trials that take no time."""
    monkeypatch.setattr(trials, "COMMAND", [sys.executable, "-S", "-c", TRAIN])
    monkeypatch.setattr(trials, "POLL", 0.01)


@pytest.fixture
def run(config, tmp_path, quick):
    def call(number=3, folder="sweep", stop=None, seed=0, prune=False, **options):
        return sweep(
            search(config, **options),
            str(tmp_path / folder),
            config_file=config,
            trials=number,
            seed=seed,
            prune=prune,
            stop=stop,
        )

    return call


def table(workdir):
    with open(workdir / "trials.csv", encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def test_trials_are_runs_in_their_own_folders(run, tmp_path, config):
    out = run(3)
    rows = table(tmp_path / "sweep")
    assert [r["state"] for r in rows] == ["complete"] * 3
    losses = [float(r["loss"]) for r in rows]
    assert losses == sorted(losses), "the best one first"
    for row in rows:
        (command,) = (tmp_path / "sweep" / row["folder"] / "starts").read_text().splitlines()
        words = command.split()
        assert f"--config={config}" in words and "--coordinator=none" in words
        assert f"--config.model.width={row['model.width']}" in words
        assert 1e-4 <= float(row["optim.lr"]) <= 1e-2
    best = out.splitlines()[-1]
    assert best.startswith(f"best: {tmp_path / 'sweep' / 'trials' / rows[0]['trial']};")
    with Image.open(tmp_path / "sweep" / "trials.png") as picture:
        assert picture.width > 3 * 250, "one panel for the trials, one for each field"


def test_the_same_command_resumes(run, tmp_path):
    run(2)
    run(3)
    run(3)
    folders = sorted(p.name for p in (tmp_path / "sweep" / "trials").iterdir())
    assert folders == ["0", "1", "2"]
    for name in folders:
        assert len((tmp_path / "sweep" / "trials" / name / "starts").read_text().splitlines()) == 1
    with pytest.raises(UserError, match="holds another search"):
        run(4, metric="other")


def test_a_seed_draws_the_same_again(run, tmp_path):
    for folder in ("a", "b"):
        run(2, folder)
    run(2, "c", seed=1)
    drawn = [[r["optim.lr"] for r in table(tmp_path / f)] for f in "abc"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 2


def test_interrupted_trial_resumes(run, tmp_path):
    (tmp_path / "sweep").mkdir()
    hold = tmp_path / "sweep" / "hold"
    hold.touch()

    class Patient(PreemptionHandler):
        """Asks to stop once the trial has evaluated twice."""

        @property
        def requested(self):
            path = tmp_path / "sweep" / "trials" / "0" / "metrics.jsonl"
            return path.exists() and len(path.read_text().splitlines()) == 2

    with pytest.raises(Stopped), runs.no_hang(60):
        run(1, stop=Patient())
    hold.unlink()
    run(1)
    assert not (tmp_path / "sweep" / "trials" / "1").exists()
    starts = (tmp_path / "sweep" / "trials" / "0" / "starts").read_text().splitlines()
    assert len(starts) == 2 and starts[0] == starts[1]
    (row,) = table(tmp_path / "sweep")
    assert row["folder"] == os.path.join("trials", "0") and row["state"] == "complete"


def test_a_trial_whose_machine_died_is_taken_up(run, tmp_path, config, monkeypatch):
    run(1)
    workdir = str(tmp_path / "sweep")
    lost = trials.Worker(search(config), workdir, "", False, 0)
    trial = lost.study.ask()  # and then nothing more is heard of it
    values = {r.key: r.suggest(trial) for r in search(config).ranges}
    run(2)
    rows = {r["folder"]: r for r in table(tmp_path / "sweep")}
    assert set(rows) == {os.path.join("trials", name) for name in ("0", "1")}
    taken = rows[os.path.join("trials", "1")]
    assert float(taken["optim.lr"]) == pytest.approx(values["optim.lr"], rel=1e-3)


def test_a_trial_of_another_machine_that_lives_is_left_alone(run, tmp_path, config):
    run(1)
    worker = trials.Worker(search(config), str(tmp_path / "sweep"), "", False, 0)
    trial = worker.study.ask()
    folder = tmp_path / "sweep" / "trials" / "1" / "worker"
    with runs.lock_holder(folder if folder.exists() else (folder.mkdir(parents=True), folder)[1]):
        run(2)
    assert [r["folder"] for r in table(tmp_path / "sweep")] == [os.path.join("trials", "0")]
    assert worker.study.trials[trial.number].state.name == "RUNNING"


@pytest.mark.parametrize("code, state", [(70, "pruned"), (71, "pruned")])
def test_failing_trial_is_a_result(code, state, run, tmp_path, capsys):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "exit").write_text(str(code))
    run(1)
    (row,) = table(tmp_path / "sweep")
    assert row["state"] == state and row["loss"] == "-"
    assert ("not finite", "out of memory")[code - 70] in capsys.readouterr().out


def test_user_errors_end_the_search(run, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "exit").write_text("2")
    with pytest.raises(UserError, match=r"trial 0 .* 2.*0/log\.txt"):
        run(1)
    (tmp_path / "sweep" / "exit").unlink()
    run(1)
    assert [r["folder"] for r in table(tmp_path / "sweep")] == [os.path.join("trials", "0")]


def test_a_metric_that_is_not_evaluated_is_refused(run):
    with pytest.raises(UserError, match=r"--metric=los.*'loss'"):
        run(1, metric="los")


def test_hopeless_trials_are_ended_early(run, tmp_path, monkeypatch):
    (tmp_path / "sweep").mkdir()
    run(5)
    worse = {"optim.lr": 1e-2, "model.width": 8}
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "sweep" / "study.journal"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    study.enqueue_trial(worse)
    hold = tmp_path / "sweep" / "hold"
    hold.touch()  # or it would be done before anybody looks
    run(6, prune=True)
    (pruned,) = (r for r in table(tmp_path / "sweep") if r["state"] == "pruned")
    assert float(pruned["optim.lr"]) == pytest.approx(1e-2)
    assert float(pruned["loss"]) > 1, "its last evaluation is shown"


@pytest.mark.slow
def test_a_database_may_hold_the_search(config, tmp_path, quick):
    for workdir in ("one", "two"):
        (tmp_path / workdir).mkdir()
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    options = dict(config_file=config, trials=1, storage=storage, seed=0)
    sweep(search(config), str(tmp_path / "one"), **options)
    assert (tmp_path / "study.db").exists() and not (tmp_path / "one" / "study.journal").exists()
    with pytest.raises(UserError, match="cannot be opened"):
        sweep(search(config), str(tmp_path / "two"), **{**options, "storage": "mysql:///x/y"})


def test_optuna_is_an_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'aigc-jax\[sweep\]'"):
        run(1)


# In earnest ---------------------------------------------------------------------------------------

TINY = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from helpers import tiny

def get_config():
    return tiny.recipe("vae", train=dict(steps=12), eval=dict(every=6, batches=2))
"""


def sweeping(folder, *flags, **kw):
    """A process that searches for the rate of a tiny model."""
    (folder / "tiny_vae.py").write_text(TINY)
    command = [
        sys.executable,
        "-m",
        "aigc_jax.cli.main",
        "sweep",
        "--search=optim.lr=1e-4..1e-1:log",
    ]
    command += [f"--config={folder / 'tiny_vae.py'}", f"--workdir={folder / 'sweep'}", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **kw)


@pytest.mark.slow
def test_two_workers_share_one_search(tmp_path):
    flags = ("--trials=4", "--search=model.latent=2,4")
    workers = [sweeping(tmp_path, *flags, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [w.communicate(timeout=900)[0] for w in workers]
    assert [w.returncode for w in workers] == [0, 0]
    rows = table(tmp_path / "sweep")
    assert 4 <= len(rows) <= 5 and all(r["state"] == "complete" for r in rows)
    assert all("best: " in out for out in outs)
    for row in rows:
        config = json.loads((tmp_path / "sweep" / row["folder"] / "config.json").read_text())
        assert config["optim"]["lr"] == pytest.approx(float(row["optim.lr"]), rel=1e-3)


@pytest.mark.slow
def test_a_search_that_is_stopped_stops_its_trial(tmp_path):
    trial = tmp_path / "sweep" / "trials" / "0"
    flags = ("--trials=1", "--config.train.steps=100000")
    with sweeping(tmp_path, *flags) as worker, runs.no_hang(300):
        while not (trial / "saved.json").exists():
            time.sleep(0.1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait() == Stopped.code
    said = (trial / "log.txt").read_text()  # before its first step, or after one
    assert "stopped" in said and "is saved" in said
