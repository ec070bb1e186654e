"""The flags of the command line, which command has which, and what to say of wrong ones."""

import itertools
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from aigc_jax.core.errors import UserError, did_you_mean

FLAGS = flags.FLAGS

config_flags.DEFINE_config_file(
    "config", None, "The recipe; --config.section.key=value changes a field of it."
)
flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_integer("num", None, "How many samples.")
flags.DEFINE_integer("seed", 0, "Seed of the samples.")
flags.DEFINE_string("out", None, "Where the samples go; inside the workdir if left out.")
flags.DEFINE_multi_string("prompt", None, "Text to continue; may be given several times.")
flags.DEFINE_integer("max_new_tokens", None, "Tokens to draw after the prompt.")
flags.DEFINE_float("temperature", None, "Below 1 more likely samples, above 1 more varied ones.")
flags.DEFINE_integer("top_k", None, "Draw among the k likeliest tokens; 0: all.")
flags.DEFINE_float("top_p", None, "Draw among the tokens that hold this probability; 1: all.")
flags.DEFINE_float("min_p", None, "Leave out tokens below this share of the likeliest; 0: none.")
flags.DEFINE_float("repetition_penalty", None, "Above 1, what was said is less likely; 1: off.")
flags.DEFINE_multi_string("stop", None, "End before this text; may be given several times.")
flags.DEFINE_bool("stream", False, "Show the text while it is drawn.")
flags.DEFINE_string("system", "", "What the model is told before the chat.")
flags.DEFINE_integer("label", None, "Class of the images; -1: all in turn.")
flags.DEFINE_string("sampler", None, "heun, euler, ddim, ancestral, dpmpp_2m or meanflow.")
flags.DEFINE_integer("steps", None, "Steps of the diffusion sampler.")
flags.DEFINE_float("guidance", None, "Classifier-free guidance; 1: none.")
flags.DEFINE_string("guide", None, "Workdir of a worse model that guides instead of no class.")
flags.DEFINE_string("image", None, "Image file to begin with, scaled and cropped to the model's.")
flags.DEFINE_string("mask", None, "Image file of the same size: white is drawn anew.")
flags.DEFINE_float("strength", None, "How much of --image is drawn anew: 0 nothing, 1 all.")
flags.DEFINE_float("sigma_rel", None, "Width of the average of parameters; needs ema.sigma_rels.")
flags.DEFINE_string(
    "from", None, "KIND:PATH of data; hf:DIR, gguf:FILE, diffusers:DIR or peft:DIR of a model."
)
flags.DEFINE_string("base", None, "hf:DIR or gguf:FILE: the model that adapters are for.")
flags.DEFINE_string("to", None, "hf:DIR or diffusers:DIR, or peft:DIR for adapters alone.")
flags.DEFINE_string("dtype", None, "float32, bfloat16 or float16: how weights are written.")
flags.DEFINE_string("source", None, "Other data to evaluate on, as in data.source.")
flags.DEFINE_string("images", None, "Folder or file of any library's images to judge instead.")
flags.DEFINE_string("features", None, "classifier, efficientnet-lite0 or inception:FILE.")
flags.DEFINE_string("resize", None, "clean-fid or torch-fidelity: how a network's input is made.")
flags.DEFINE_string("reference", None, "File of a reference's features: read, or else written.")
flags.DEFINE_integer("samples", None, "How many images to draw and judge.")
flags.DEFINE_integer("generations", None, "Held-out texts to write anew and compare.")
flags.DEFINE_integer("likelihood", None, "Held-out images whose exact likelihood to find.")
flags.DEFINE_string("name", None, "Name of the data set to write.")
flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Folder of data sets.")
flags.DEFINE_integer("image_size", 0, "Resize and crop images to this many pixels a side.")
flags.DEFINE_string("text_field", "text", "Field of a JSONL record that holds its text.")
flags.DEFINE_string("label_field", "label", "Field of a JSONL record that holds its class, if any.")
flags.DEFINE_float("seconds", 10.0, "How long to take steps.")
flags.DEFINE_string(
    "synthetic", None, "The data's shape: text, or HxWxC as in 32x32x3, :CLASSES after."
)
flags.DEFINE_string("json", None, "File for the figures.")
flags.DEFINE_string("topology", None, "What to plan for: v5p:8x8x4, v5p-512, cpu:8 or gpu:N.")
flags.DEFINE_integer("slices", 1, "So many of that topology, connected by a slow network.")
flags.DEFINE_float("tokens", None, "Tokens (or images) of the whole training.")
flags.DEFINE_bool("sweep_mesh", False, "Plan the meshes that fit, and rank them.")
flags.DEFINE_integer("tries", 6, "How many meshes of a sweep to compile.")
flags.DEFINE_bool(
    "fit", False, "Find what makes it fit: sharding of the state, remat, accumulation."
)
flags.DEFINE_string("profile", None, "Folder for a trace; shows the dearest operations.")
flags.DEFINE_string("check", None, "Baseline to compare with: is anything slower?")
flags.DEFINE_string("write_baseline", None, "Baseline to measure and write.")
flags.DEFINE_string("mesh", None, "Devices to share the work, as in the config; one if left out.")
flags.DEFINE_bool("deterministic", False, "Only operations that repeat bit for bit, on a GPU too.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; none: no other processes.")
flags.DEFINE_integer("num_processes", None, "How many processes run together; a cluster tells.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; a cluster tells.")
flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes to start.")
flags.DEFINE_bool("distributed", False, "Prove and time the network between the processes.")
flags.DEFINE_multi_string("search", None, "KEY=a,b,c or KEY=low..high[:log]; or a file of them.")
flags.DEFINE_integer("trials", 20, "How many runs to search with.")
flags.DEFINE_string("metric", "loss", "Held-out metric to search by.")
flags.DEFINE_bool("maximize", False, "Whether the metric is better when larger.")
flags.DEFINE_bool("prune", False, "End runs early that evaluate worse than half of the others.")
flags.DEFINE_string(
    "storage", None, "Database of the search, sqlite:///… say; else in the workdir."
)

TEXT_OPTIONS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "stop",
)
SAMPLE_OPTIONS = (
    *TEXT_OPTIONS,
    "label",
    "sampler",
    "steps",
    "guidance",
    "guide",
    "strength",
)
BENCH_OPTIONS = ("config", "seconds", "synthetic", "json", "profile")
PROCESS_OPTIONS = ("coordinator", "num_processes", "process_id", "join_timeout")
IMAGE_OPTIONS = ("features", "resize", "reference", "samples")
# What may be given in the place of a flag that a command needs.
INSTEAD = {("eval", "workdir"): ("images",), ("bench", "config"): ("check", "write_baseline")}
# What each command does, the flags it needs and those it may have.
COMMANDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "train": (
        "trains a recipe, or goes on where it stopped",
        ("config", "workdir"),
        ("deterministic", *PROCESS_OPTIONS),
    ),
    "eval": (
        "evaluates a trained workdir on held-out data",
        ("workdir",),
        (
            "data_dir",
            "source",
            "generations",
            "likelihood",
            "sigma_rel",
            "images",
            "out",
            "seed",
            "mesh",
            *IMAGE_OPTIONS,
            "deterministic",
        ),
    ),
    "sample": (
        "draws from a trained workdir",
        ("workdir",),
        (
            *("num", "seed", "out", "sigma_rel", "deterministic", "prompt", "stream"),
            *("image", "mask", "mesh", *SAMPLE_OPTIONS),
        ),
    ),
    "chat": (
        "talks with a trained language model",
        ("workdir",),
        ("system", "seed", *TEXT_OPTIONS),
    ),
    "convert": (
        "takes weights in from other libraries, or gives them out",
        ("workdir",),
        ("from", "to", "base", "dtype"),
    ),
    "prepare": (
        "turns own files into a data set",
        ("from", "name"),
        ("data_dir", "image_size", "text_field", "label_field"),
    ),
    "bench": (
        "times a recipe on this machine",
        ("config",),
        (*BENCH_OPTIONS[1:], "check", "write_baseline"),
    ),
    "plan": (
        "compiles a recipe's step for devices that are not here, and tells what a run would take",
        ("config", "topology"),
        ("slices", "synthetic", "tokens", "sweep_mesh", "tries", "fit", "json"),
    ),
    "doctor": (
        "shows what this machine has, how a workdir is, or what the network gives",
        (),
        ("workdir", "distributed", *PROCESS_OPTIONS),
    ),
    "sweep": (
        "searches hyperparameters by many runs, on one machine or several",
        ("config", "workdir", "search"),
        ("trials", "metric", "maximize", "prune", "storage", "seed", "deterministic"),
    ),
    "demo": ("trains all four families and writes a page", ("workdir",), ()),
}


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
        raise UserError(f"there is no command '{command}': {did_you_mean(command, COMMANDS)}")
    check_overrides(words[1:])
    try:
        rest = FLAGS([argv[0], *words[1:]])
    except flags.UnrecognizedFlagError as e:
        known = dict.fromkeys(f for _, n, may in COMMANDS.values() for f in n + may)
        raise UserError(
            f"there is no flag --{e.flagname}: {did_you_mean(e.flagname, known)}"
        ) from e
    except (flags.Error, TypeError, ValueError, LookupError, AttributeError) as e:
        raise UserError(" ".join(str(e).split())) from e
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is not a flag: write --flag=value")
    _, needed, optional = COMMANDS[command]
    for name in dict.fromkeys(f for _, n, may in COMMANDS.values() for f in n + may):
        if FLAGS[name].present and name not in needed + optional:
            raise UserError(f"--{name} is not a flag of 'aigc {command}'")
    for name in needed:
        names = [name, *INSTEAD.get((command, name), ())]
        if not any(FLAGS[n].present and FLAGS[n].value for n in names):
            raise UserError(f"'aigc {command}' needs {' or '.join(f'--{n}=…' for n in names)}")
    return [argv[0], command]


def check_overrides(words: Sequence[str]) -> None:
    """Loads the config file before the flags do, to say plainly what is wrong with it.

    Raises:
      UserError: if it cannot be loaded, or an override names a key that it does not have.
    """
    from aigc_jax.core.config import flatten
    from aigc_jax.experiment.recipes import load_recipe

    pairs = dict(_flag_values(words))
    if "config" not in pairs:
        return
    known = flatten(load_recipe(pairs["config"]).to_dict())
    sections = {key.rpartition(".")[0] for key in known}
    for flag in pairs:
        name = flag.removeprefix("no")  # --noconfig.key is key=False
        key = name.removeprefix("config.")
        if key != name and key not in known.keys() | sections:
            raise UserError(f"the config has no key '{key}': {did_you_mean(key, known)}")


def _flag_values(words: Sequence[str]) -> list[tuple[str, str]]:
    """`--flag=value` and `--flag value` as pairs."""
    pairs = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("-"):
            name, equals, value = word.lstrip("-").partition("=")
            pairs.append((name, value if equals else following))
    return pairs
