"""The command line: its flags are fixed, and whatever is wrong becomes one sentence."""

import dataclasses
import importlib
import json
import os
import pkgutil
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import aigc_jax
from aigc_jax.cli import flags as cli
from aigc_jax.cli import main
from aigc_jax.cli.command import option_help
from aigc_jax.core import config
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.experiment import build, recipes
from aigc_jax.experiment.eval_options import eval_section, override_eval
from aigc_jax.families import registry
from aigc_jax.tools import doctor

# What people have in their scripts: a flag may be added here, but not renamed or taken away. The
# options of families and evaluations are flags too, by their dataclasses.
FLAG_NAMES = [
    "base",
    "check",
    "config",
    "coordinator",
    "data_dir",
    "deterministic",
    "distributed",
    "dtype",
    "fit",
    "from",
    "image",
    "image_size",
    "images",
    "join_timeout",
    "json",
    "label_field",
    "mask",
    "maximize",
    "mesh",
    "metric",
    "name",
    "num",
    "num_processes",
    "out",
    "process_id",
    "profile",
    "prompt",
    "prune",
    "search",
    "seconds",
    "seed",
    "sigma_rel",
    "slices",
    "source",
    "storage",
    "stream",
    "sweep_mesh",
    "synthetic",
    "system",
    "text_field",
    "to",
    "tokens",
    "topology",
    "trials",
    "tries",
    "workdir",
    "write_baseline",
]
COMMANDS = [
    "bench",
    "chat",
    "convert",
    "demo",
    "doctor",
    "eval",
    "plan",
    "prepare",
    "sample",
    "sweep",
    "train",
]

# A recipe without the library, so that loading it takes no time.
RECIPE = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict(dict(
        seed=0,
        data=dict(source="digits", batch_size=64),
        model=dict(name="mlp", latent=20, hidden=(400,)),
        objective=dict(name="vae"),
        optim=dict(lr=1e-3),
        eval=dict(image=dict(fidelity=True)),
    ))
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def parse(monkeypatch):
    """Parses a command line as `aigc` does; returns the command and the flags that were given."""

    def call(*words):
        # The config flag looks for overrides in the arguments of the process.
        monkeypatch.setattr(sys, "argv", ["aigc", *words])
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            try:
                program, command = main.parse_flags(sys.argv)
                assert program == "aigc"
                names = (*FLAG_NAMES, *cli.COMMANDS[command].option_names())
                given = {name: flags.FLAGS[name] for name in names}
                given = {name: flag.value for name, flag in given.items() if flag.present}
                if "config" in given:
                    given["config"] = given["config"].to_dict()
                return command, given
            finally:
                flags.FLAGS.mark_as_parsed()

    return call


@pytest.fixture
def refusal(parse):
    """The one sentence with which a command line is refused."""

    def call(*words):
        with pytest.raises(UserError) as caught:
            parse(*words)
        message = str(caught.value)
        assert message and "\n" not in message
        return message

    return call


# Flags ---------------------------------------------------------------------------------------


def test_flags_are_frozen():
    assert sorted(cli.static_flags()) == FLAG_NAMES


def test_the_public_names_stay_callable_whatever_is_imported():
    """A submodule that is imported becomes an attribute, and would hide a function of its name."""
    for module in pkgutil.iter_modules(aigc_jax.__path__):
        importlib.import_module(f"aigc_jax.{module.name}")
    assert all(callable(getattr(aigc_jax, name)) for name in aigc_jax.__all__)


def test_commands_are_frozen():
    assert sorted(cli.COMMANDS) == COMMANDS


@pytest.mark.parametrize("command", ["sample", "chat"])
def test_the_options_of_a_family_are_flags(command):
    options = {
        field.name for f in registry.FAMILIES.values() for field in dataclasses.fields(f.sample)
    }
    hidden = cli.COMMANDS[command].hidden_options
    assert set(cli.COMMANDS[command].option_names()) == options - set(hidden)
    assert {"temperature", "guidance", "top_k"} <= options


@pytest.mark.parametrize("command", ["sample", "chat", "eval"])
def test_every_option_has_a_help_text(command):
    groups = cli.COMMANDS[command].option_groups()
    texts = {name: text for group in groups.values() for name, text in group.items()}
    assert texts.keys() == set(cli.COMMANDS[command].option_names())
    assert not [name for name, text in texts.items() if "field" in text]


def test_help_of_an_option_has_its_values():
    @dataclasses.dataclass(frozen=True)
    class Options:
        one: int = option(1, low=1, flag="One.")
        two: float = option(0.5, low=0, high=1, flag="Two.")
        three: str = option("a", choices=("a", "b"), flag="Three.")
        four: bool = False

    texts = [option_help(field) for field in dataclasses.fields(Options)]
    values = ("≥1", "0 to 1", "a, b", "four")
    assert all(value in text for value, text in zip(values, texts, strict=True))


def test_options_that_differ_between_sections_have_both_help_texts(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Sample(config.Sample):
        temperature: float = option(1.0, low=0.0, flag="Of the weather.")

    family = dataclasses.replace(registry.FAMILIES["vae"], sample=Sample)
    monkeypatch.setitem(registry.FAMILIES._items, "own", family)
    usage = cli.command_usage("sample")
    assert "options of own:" in usage and "Of the weather" in usage and "Softmax" in usage


def test_flags_of_an_evaluation_reach_the_sections_of_the_modalities(parse):
    words = ("--num_samples=5", "--nofidelity", "--metrics=a:B", "--metrics=c:D")
    _, given = parse("eval", "--workdir=w", *words)
    names = cli.COMMANDS["eval"].option_names()
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in names}
    section = override_eval(eval_section()(), "image", options)
    assert section.num_samples == 5 and section.metrics == ("a:B", "c:D")
    assert not section.image.fidelity
    with pytest.raises(UserError, match="fidelity"):
        override_eval(eval_section()(), "text", options)


def test_an_option_of_a_registered_family_is_a_flag(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Sample(config.Sample):
        sharpness: float = option(1.0, low=0.0, flag="How sharp.")

    family = dataclasses.replace(registry.FAMILIES["vae"], sample=Sample)
    monkeypatch.setitem(registry.FAMILIES._items, "own", family)
    assert "sharpness" in cli.COMMANDS["sample"].option_names()
    assert "How sharp" in cli.command_usage("sample")


def test_usage_needs_no_jax():
    code = (
        "import sys; from aigc_jax.cli import flags; flags.usage(); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_usage_names_every_command_and_its_flags():
    assert all(f"  aigc {command}" in cli.usage() for command in COMMANDS)
    for command in COMMANDS:
        words = cli.command_usage(command).split()
        assert {f"--{name}" for name in cli.COMMANDS[command].flags} <= set(words)


@pytest.mark.parametrize(
    "words", [[], ["help"], ["--help"], ["-h"], ["train", "--help"], ["doctor", "-h"]]
)
def test_help_is_printed_and_is_no_error(parse, capsys, words):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 0
    expected = cli.command_usage(words[0]) if len(words) == 2 else cli.usage()
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    "command, words, given",
    [
        ("eval", ["--workdir=w"], dict(workdir="w")),
        ("eval", ["--workdir", "w"], dict(workdir="w")),
        ("eval", ["-workdir", "w"], dict(workdir="w")),
        ("demo", ["--workdir=w"], dict(workdir="w")),
        ("doctor", [], {}),
        (
            "sample",
            ["--workdir=w", "--num=3", "--seed=2", "--prompt=", "--temperature=1", "--top_k=5"],
            dict(workdir="w", num=3, seed=2, prompt=[""], temperature=1.0, top_k=5),
        ),
        ("sample", ["--workdir=w", "--label=-1"], dict(workdir="w", label=-1)),
        (
            "prepare",
            ["--from=folder:x", "--name=own", "--image_size=8", "--data_dir=d"],
            {"from": "folder:x", "name": "own", "image_size": 8, "data_dir": "d"},
        ),
    ],
)
def test_flags_of_a_command(parse, command, words, given):
    assert parse(command, *words) == (command, given)


# Overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, section, key, value",
    [
        (["--config.data.batch_size=8"], "data", "batch_size", 8),
        (["--config.data.batch_size", "8"], "data", "batch_size", 8),
        (["--config.data.source=tfds:own"], "data", "source", "tfds:own"),
        (["--config.optim.lr=1"], "optim", "lr", 1.0),
        (["--config.optim.lr=1e-4"], "optim", "lr", 1e-4),
        (["--config.model.hidden=(100, 50)"], "model", "hidden", (100, 50)),
        (["--config.model.hidden=100"], "model", "hidden", (100,)),
        (["--config.eval.image.fidelity=false"], "eval.image", "fidelity", False),
        (["--noconfig.eval.image.fidelity"], "eval.image", "fidelity", False),
    ],
)
def test_an_override_changes_its_field_only(parse, recipe, words, section, key, value):
    _, plain = parse("train", f"--config={recipe}", "--workdir=w")
    command, given = parse("train", f"--config={recipe}", "--workdir=w", *words)
    found, expected = given["config"], plain["config"]
    for name in section.split("."):
        found, expected = found[name], expected[name]
    assert command == "train" and found[key] == value
    assert type(found[key]) is type(value)
    expected[key] = value
    assert given == plain


def test_flags_may_be_written_with_a_space(parse, recipe):
    words = ["--config", recipe, "--workdir", "w", "--config.seed", "3"]
    _, given = parse("train", *words)
    assert given["workdir"] == "w" and given["config"]["seed"] == 3


def test_overrides_may_come_in_any_order_after_the_config(parse, recipe):
    words = [f"--config={recipe}", "--config.seed=3", "--workdir=w", "--config.data.source=x"]
    _, given = parse("train", *words)
    assert (given["config"]["seed"], given["config"]["data"]["source"]) == (3, "x")


@pytest.mark.parametrize(
    "word, culprit, hint",
    [
        ("--config.data.batchsize=3", "'data.batchsize'", "did you mean 'data.batch_size'?"),
        ("--config.model.latnt=3", "'model.latnt'", "did you mean 'model.latent'?"),
        ("--config.modle.latent=3", "'modle.latent'", "did you mean 'model.latent'?"),
        ("--config.sed=3", "'sed'", "did you mean 'seed'?"),
        ("--config.optim.qqqqqqqqqqqqqqqq=3", "'optim.qqqqqqqqqqqqqqqq'", "known are "),
        (
            "--noconfig.eval.image.fidelty",
            "'eval.image.fidelty'",
            "did you mean 'eval.image.fidelity'?",
        ),
    ],
)
def test_an_override_of_an_unknown_key_names_the_nearest(refusal, recipe, word, culprit, hint):
    message = refusal("train", f"--config={recipe}", "--workdir=w", word)
    assert message.startswith(f"the config has no key {culprit}: ") and hint in message


@pytest.mark.parametrize(
    "word, key",
    [
        ("--config.data.batch_size=many", "config.data.batch_size"),
        ("--config.data.batch_size=1.5", "config.data.batch_size"),
        ("--config.data.batch_size=", "config.data.batch_size"),
        ("--config.optim.lr=fast", "config.optim.lr"),
        ("--config.eval.image.fidelity=maybe", "config.eval.image.fidelity"),
        ("--config.data=3", "config.data"),
        ("--config.model.hidden[7]=3", "model.hidden[7]"),
        ("--config.data.source[0]=x", "data.source[0]"),
    ],
)
def test_an_override_of_a_wrong_type_is_refused_by_name(refusal, recipe, word, key):
    assert key in refusal("train", f"--config={recipe}", "--workdir=w", word)


def test_check_overrides_alone(recipe):
    cli.check_overrides([])
    cli.check_overrides(["--workdir=w"])
    cli.check_overrides([f"--config={recipe}", "--config.data.batch_size=3"])
    with pytest.raises(UserError, match=r"'data\.batchsize'"):
        cli.check_overrides([f"--config={recipe}", "--config.data.batchsize=3"])


# Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["trian"], "there is no command 'trian': did you mean 'train'?"),
        (["evaluate", "--workdir=w"], "there is no command 'evaluate': did you mean 'eval'?"),
        (["--workdir=w"], "there is no command '--workdir=w': known are "),
        (["train"], "'aigc train' needs --config=…"),
        (["eval"], "'aigc eval' needs --workdir=…"),
        (["eval", "--workdir="], "'aigc eval' needs --workdir=…"),
        (["train", "--workdir=w"], "'aigc train' needs --config=…"),
        (["prepare", "--from=folder:x"], "'aigc prepare' needs --name=…"),
        (["prepare", "--name=x"], "'aigc prepare' needs --from=…"),
        (["eval", "--wokdir=w"], "there is no flag --wokdir: did you mean 'workdir'?"),
        (["eval", "--workdir=w", "--num=3"], "--num is not a flag of 'aigc eval'"),
        (["bench"], "'aigc bench' needs --config=… or --check=… or --write_baseline=…"),
        (["bench", "--check=x", "--trials=3"], "--trials is not a flag of 'aigc bench'"),
        (["doctor", "--seed=0"], "--seed is not a flag of 'aigc doctor'"),
        (["eval", "--workdir=w", "stray"], "'stray' is not a flag: write --flag=value"),
        (["eval", "w"], "'w' is not a flag: write --flag=value"),
        (["eval", "--workdir"], "Missing value for flag --workdir"),
        (["sample", "--workdir=w", "--num=few"], "flag --num=few: "),
        (["sample", "--workdir=w", "--steps=1.5"], "flag --steps=1.5: "),
        (["sample", "--workdir=w", "--guidance=x"], "flag --guidance=x: "),
    ],
)
def test_a_wrong_command_line_is_refused(refusal, words, message):
    assert refusal(*words).startswith(message)


def test_a_missing_workdir_is_named(refusal, recipe):
    assert refusal("train", f"--config={recipe}") == "'aigc train' needs --workdir=…"


CONFIG_FILES = {
    "syntax error": ("def get_config(:\n", "SyntaxError"),
    "no get_config": ("x = 1\n", "must define get_config()"),
    "KeyError inside": ("def get_config():\n    return {}['lost']\n", "'lost'"),
    "other error inside": ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
    "missing import": ("import a_module_that_is_not_there\n", "a_module_that_is_not_there"),
    "not a ConfigDict": ("def get_config():\n    return {}\n", "ml_collections.ConfigDict"),
    "nothing returned": ("def get_config():\n    pass\n", "ml_collections.ConfigDict"),
    "takes arguments": ("def get_config(x):\n    return x\n", "TypeError"),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_a_config_file_that_cannot_be_loaded_is_named(refusal, tmp_path, name):
    content, reason = CONFIG_FILES[name]
    path = tmp_path / "recipe.py"
    path.write_text(content)
    message = refusal("train", f"--config={path}", "--workdir=w")
    assert str(path) in message and reason in message
    assert name == "no get_config" or "must define get_config" not in message


@pytest.mark.parametrize("name", ["gone.py", "", "."])
def test_a_config_file_that_is_not_there_is_named(refusal, tmp_path, name):
    path = tmp_path / name
    message = refusal("train", f"--config={path}", "--workdir=w")
    assert str(path) in message


@pytest.mark.parametrize("name", ["lm/quickstart", "configs/lm/quickstart.py", "lm/quickstart.py"])
def test_a_recipe_is_found_by_its_name_from_any_folder(parse, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    _, given = parse("train", f"--config={name}", "--workdir=w")
    assert given["config"]["objective"]["name"] == "lm"


def test_a_recipe_of_a_wrong_name_names_the_nearest(refusal):
    assert "'lm/quickstart'" in refusal("train", "--config=lm/quikstart", "--workdir=w")


def test_a_mistake_that_the_recipe_finds_itself_is_passed_on(refusal, tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "import aigc_jax\n\ndef get_config():\n    return aigc_jax.recipe("
        "objective=dict(name='vae'), model=dict(name='mlp', latnt=3))\n"
    )
    message = refusal("train", f"--config={path}", "--workdir=w")
    assert "'model.latnt'" in message and "'latent'" in message


def test_load_recipe_returns_what_the_file_returns(recipe):
    config = recipes.load_recipe(recipe)
    assert isinstance(config, ml_collections.ConfigDict)
    assert build.parse_config(config).data.batch_size == 64


# As a process --------------------------------------------------------------------------------


def aigc(folder, *words):
    command = [sys.executable, "-m", "aigc_jax.main", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


LIBRARY_RECIPE = """
import aigc_jax

def get_config():
    return aigc_jax.recipe(
        objective=dict(name="vae"), model=dict(name="mlp"), train=dict(steps=1)
    )
"""

TRAIN = ["train", "--config=recipe.py", "--workdir=w"]
MISTAKES = {
    "command": (["trian"], "did you mean 'train'?"),
    "missing flag": (["eval"], "--workdir"),
    "no config file": (["train", "--config=gone.py", "--workdir=w"], "gone.py"),
    "syntax error": (["train", "--config=broken.py", "--workdir=w"], "broken.py"),
    "unknown key": ([*TRAIN, "--config.data.batchsize=3"], "did you mean 'data.batch_size'?"),
    "wrong type": ([*TRAIN, "--config.data.batch_size=many"], "config.data.batch_size"),
    "out of range": ([*TRAIN, "--config.data.batch_size=0"], "data.batch_size"),
    "no checkpoint": (["eval", "--workdir=empty"], "empty"),
    "bad data": (["prepare", "--from=npz:d.npz", "--name=own", "--data_dir=data"], "float64"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, name):
    (tmp_path / "recipe.py").write_text(LIBRARY_RECIPE)
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "d.npz", images=np.zeros((3, 4, 4)))
    before = sorted(p.name for p in tmp_path.iterdir())
    words, culprit = MISTAKES[name]
    done = aigc(tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("aigc: error: ") and done.stderr.count("\n") == 1
    assert culprit in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_prepare_as_a_process(tmp_path):
    np.savez(tmp_path / "d.npz", images=np.zeros((3, 4, 4), np.uint8))
    done = aigc(tmp_path, "prepare", "--from=npz:d.npz", "--name=own", "--data_dir=data")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "prepared: " in done.stdout
    assert "--config.data.source=tfds:own --config.data.data_dir=data" in done.stdout
    (info,) = (tmp_path / "data" / "own").glob("*/dataset_info.json")
    assert json.loads(info.read_text())["name"] == "own"


def test_doctor_as_a_process(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = aigc(tmp_path, "doctor")
    assert "Traceback" not in done.stderr
    assert all(word in done.stdout for word in ("jax ", "device 0: cpu", "GFLOP/s"))
    assert done.returncode == ("aigc: warning" in done.stdout)


@pytest.mark.parametrize(
    "present, backend, package",
    [
        ("/dev/nvidia0", "cpu", "aigc-jax[cuda]"),
        ("/dev/nvidia0", "gpu", ""),
        ("/dev/accel0", "cpu", "aigc-jax[tpu]"),
        ("/dev/accel0", "tpu", ""),
        ("", "cpu", ""),
    ],
)
def test_doctor_says_how_to_use_an_unseen_accelerator(monkeypatch, present, backend, package):
    def find(pattern):
        return [present] if present and present.startswith(pattern.split("[")[0].strip("*")) else []

    monkeypatch.setattr(doctor.glob, "glob", find)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.delenv("TPU_WORKER_ID", raising=False)
    advice = doctor.unused_accelerator(backend)
    assert (package in advice) if package else advice == ""


def test_deterministic_extends_xla_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    main.make_deterministic()
    words = os.environ["XLA_FLAGS"].split()
    assert words[0] == "--xla_dump_to=here"
    assert {"--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0"} <= set(words)
