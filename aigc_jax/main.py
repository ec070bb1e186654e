"""The command line: parses flags and calls one function per subcommand."""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from aigc_jax.errors import Stopped, UserError, nearest
from aigc_jax.parallel import coordination
from aigc_jax.parallel.stop import Stop
from aigc_jax.streams import make_steady

FLAGS = flags.FLAGS

config_flags.DEFINE_config_file(
    "config", None, "The recipe; --config.section.key=value changes a field of it."
)
flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_integer("num", None, "How many samples.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")
flags.DEFINE_string("out", None, "Where the samples go; inside the workdir if left out.")
flags.DEFINE_string("prompt", None, "Text to continue.")
flags.DEFINE_integer("max_new_tokens", None, "Tokens to draw after the prompt.")
flags.DEFINE_float("temperature", None, "Below 1 more likely samples, above 1 more varied ones.")
flags.DEFINE_integer("top_k", None, "Draw among the k likeliest tokens; 0: all.")
flags.DEFINE_float("top_p", None, "Draw among the tokens that hold this probability; 1: all.")
flags.DEFINE_integer("label", None, "Class of the images; -1: all in turn.")
flags.DEFINE_string("sampler", None, "heun, euler, ddim or ancestral.")
flags.DEFINE_integer("steps", None, "Steps of the diffusion sampler.")
flags.DEFINE_float("guidance", None, "Classifier-free guidance; 1: none.")
flags.DEFINE_string("from", None, "KIND:PATH with folder, text, jsonl, npz, safetensors or idx.")
flags.DEFINE_string("name", None, "Name of the data set to write.")
flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Folder of data sets.")
flags.DEFINE_integer("image_size", 0, "Resize and crop images to this many pixels a side.")
flags.DEFINE_string("text_field", "text", "Field of a JSONL record that holds its text.")
flags.DEFINE_bool("deterministic", False, "Only operations that repeat bit for bit, on a GPU too.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, or auto on a cluster that tells.")
flags.DEFINE_integer("num_processes", None, "How many processes train together.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")

STOP = Stop()  # the requests to stop that this process is given

SAMPLE_OPTIONS = (
    "prompt",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "label",
    "sampler",
    "steps",
    "guidance",
)
# What each command does, the flags it needs and those it may have.
COMMANDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "train": (
        "trains a recipe, or goes on where it stopped",
        ("config", "workdir"),
        ("deterministic", "coordinator", "num_processes", "process_id"),
    ),
    "eval": (
        "evaluates a trained workdir on held-out data",
        ("workdir",),
        ("data_dir", "deterministic"),
    ),
    "sample": (
        "draws from a trained workdir",
        ("workdir",),
        ("num", "seed", "out", "deterministic", *SAMPLE_OPTIONS),
    ),
    "prepare": (
        "turns own files into a data set",
        ("from", "name"),
        ("data_dir", "image_size", "text_field"),
    ),
    "doctor": ("shows what this machine has, or how a workdir is", (), ("workdir",)),
    "demo": ("trains all four families and writes a page", ("workdir",), ()),
}


def train() -> None:
    from aigc_jax import run

    if FLAGS.coordinator:
        from aigc_jax.parallel.processes import join

        join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    run.train(FLAGS.config, FLAGS.workdir, stop=STOP)
    if coordination.joined()[0] == 0:
        print(f"trained: {FLAGS.workdir}")


def evaluate() -> None:
    from aigc_jax import run
    from aigc_jax.train.log import finite_json

    data_dir = FLAGS.data_dir if FLAGS["data_dir"].present else ""
    print(json.dumps(finite_json(run.evaluate(FLAGS.workdir, data_dir))))


def sample() -> None:
    from aigc_jax import run
    from aigc_jax.report.grid import join_texts

    given = {name: FLAGS[name].value for name in SAMPLE_OPTIONS}
    options = {name: value for name, value in given.items() if value is not None}
    samples = run.sample(FLAGS.workdir, FLAGS.num, FLAGS.seed, **options)
    out = FLAGS.out or os.path.join(FLAGS.workdir, "samples", f"seed_{FLAGS.seed}")
    path = run.save(samples, out)
    if isinstance(samples, list):
        print(join_texts(samples))
    print(f"saved: {path}", file=sys.stderr if isinstance(samples, list) else sys.stdout)


def prepare() -> None:
    from aigc_jax.data.prepare import prepare

    path = prepare(
        FLAGS["from"].value,
        FLAGS.name,
        FLAGS.data_dir,
        image_size=FLAGS.image_size,
        text_field=FLAGS.text_field,
    )
    print(f"prepared: {path}")
    print(f"train on it with --config.data.source=tfds:{FLAGS.name}"
          f" --config.data.data_dir={FLAGS.data_dir}")  # fmt: skip


def doctor() -> int:
    from aigc_jax.doctor import examine, examine_workdir

    return examine_workdir(FLAGS.workdir) if FLAGS.workdir else examine()


def demo() -> None:
    from aigc_jax.demo import demonstrate

    demonstrate(FLAGS.workdir)


RUN: dict[str, Callable[[], int | None]] = dict(
    train=train, eval=evaluate, sample=sample, prepare=prepare, doctor=doctor, demo=demo
)


def usage() -> str:
    """The help text: commands with their flags."""
    lines = ["usage: aigc COMMAND --flag=value …", ""]
    for name, (what, needed, optional) in COMMANDS.items():
        given = [f"--{f}=…" for f in needed] + [f"[--{f}=…]" for f in optional]
        lines += [f"  aigc {name} {' '.join(given[:2])}", f"      {what}"]
    names = dict.fromkeys(f for _, needed, may in COMMANDS.values() for f in needed + may)
    lines += ["", "flags:"] + [f"  --{name:<15} {FLAGS[name].help}" for name in names]
    return "\n".join(lines)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; whatever is wrong with them becomes one sentence.

    Raises:
      UserError: for an unknown command or flag, a flag that is missing or not the command's, a
        config file that cannot be loaded, or an override of a key that it does not have.
    """
    words = list(argv[1:])
    if not words or words[0] in ("help", "--help", "-h", "-help") or "--help" in words:
        print(usage())
        raise SystemExit(0)
    command = words[0]
    if command not in COMMANDS:
        raise UserError(f"there is no command '{command}': {nearest(command, COMMANDS)}")
    check_overrides(words[1:])
    try:
        rest = FLAGS([argv[0], *words[1:]])
    except flags.UnrecognizedFlagError as e:
        known = dict.fromkeys(f for _, n, may in COMMANDS.values() for f in n + may)
        raise UserError(f"there is no flag --{e.flagname}: {nearest(e.flagname, known)}") from e
    except (flags.Error, TypeError, ValueError, LookupError, AttributeError) as e:
        raise UserError(" ".join(str(e).split())) from e
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is not a flag: write --flag=value")
    _, needed, optional = COMMANDS[command]
    for name in dict.fromkeys(f for _, n, may in COMMANDS.values() for f in n + may):
        if FLAGS[name].present and name not in needed + optional:
            raise UserError(f"--{name} is not a flag of 'aigc {command}'")
    for name in needed:
        if not FLAGS[name].present or not FLAGS[name].value:
            raise UserError(f"'aigc {command}' needs --{name}=…")
    return [argv[0], command]


def check_overrides(words: Sequence[str]) -> None:
    """Loads the config file before the flags do, to say plainly what is wrong with it.

    Raises:
      UserError: if it cannot be loaded, or an override names a key that it does not have.
    """
    from aigc_jax.config import flatten
    from aigc_jax.recipes import load_recipe

    pairs = dict(_flag_values(words))
    if "config" not in pairs:
        return
    known = flatten(load_recipe(pairs["config"]).to_dict())
    sections = {key.rpartition(".")[0] for key in known}
    for flag in pairs:
        name = flag.removeprefix("no")  # --noconfig.key is key=False
        key = name.removeprefix("config.")
        if key != name and key not in known.keys() | sections:
            raise UserError(f"the config has no key '{key}': {nearest(key, known)}")


def _flag_values(words: Sequence[str]) -> list[tuple[str, str]]:
    """`--flag=value` and `--flag value` as pairs."""
    pairs = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("-"):
            name, equals, value = word.lstrip("-").partition("=")
            pairs.append((name, value if equals else following))
    return pairs


def main(argv: Sequence[str]) -> int | None:
    for name in ("workdir", "out"):  # a shell leaves the ~ of --workdir=~/w alone
        if FLAGS[name].value:
            FLAGS[name].value = os.path.expanduser(FLAGS[name].value)
    if FLAGS.deterministic:
        make_deterministic()
    return RUN[argv[1]]()


def make_deterministic() -> None:
    """What a GPU needs to give the same bits twice; must come before JAX is imported.

    Operations whose results depend on the order of atomic additions are replaced, and kernels are
    not chosen by timing them. A CPU needs nothing.
    """
    wanted = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {wanted}".strip()


def run(argv: Sequence[str] | None = None) -> None:
    """The entry point: `aigc` and `python -m aigc_jax.main`."""
    make_steady()
    quieten()
    argv = list(argv or sys.argv)
    try:
        # Before anything slow is imported, so that a signal is heard at any time.
        with STOP.listen() if argv[1:2] == ["train"] else contextlib.nullcontext():
            app.run(main, argv=argv, flags_parser=parse_flags)
    except UserError as e:
        print(f"aigc: error: {e}" if e.code != Stopped.code else f"aigc: {e}", file=sys.stderr)
        leave(e.code)
    except KeyboardInterrupt:
        print(
            "aigc: interrupted; a training run goes on from its newest checkpoint",
            file=sys.stderr,
        )
        sys.exit(130)


def quieten() -> None:
    """Leaves out what libraries print beside their exceptions: a full disk has them print a lot."""
    logging.set_verbosity(logging.FATAL)
    logging.logging.getLogger("asyncio").setLevel("CRITICAL")
    hook = sys.excepthook

    def without_echoes(kind: type, error: BaseException, trace: Any) -> None:
        # TensorStore reports the other writes of a save that has failed to a loop that is gone.
        if str(error) != "Event loop is closed":
            hook(kind, error, trace)

    sys.excepthook = without_echoes


def leave(code: int) -> None:
    """Ends the process; one of several does not wait for the others, which may never end."""
    if coordination.joined()[1] > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
