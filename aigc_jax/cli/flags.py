"""Parses the command line: commands, flags, and errors for invalid ones."""

import itertools
import os
import textwrap
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from aigc_jax.cli import (
    bench,
    chat,
    convert,
    demo,
    doctor,
    evaluate,
    plan,
    prepare,
    sample,
    sweep,
    train,
)
from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.core.errors import UserError, did_you_mean

config_flags.DEFINE_config_file(
    "config", None, "A recipe's name or file; --config.section.key=value changes a field of it."
)
flags.DEFINE_string("workdir", None, "The run's folder.")
flags.DEFINE_integer("seed", 0, "Random seed.")
flags.DEFINE_string("out", None, "File to write to; by default inside the workdir.")
flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Folder of prepared data sets.")
flags.DEFINE_string("mesh", None, "Mesh of devices, as in the config: data=4; default: one device.")

COMMANDS: dict[str, Command] = {
    "train": train.COMMAND,
    "eval": evaluate.COMMAND,
    "sample": sample.COMMAND,
    "chat": chat.COMMAND,
    "convert": convert.COMMAND,
    "prepare": prepare.COMMAND,
    "bench": bench.COMMAND,
    "plan": plan.COMMAND,
    "doctor": doctor.COMMAND,
    "sweep": sweep.COMMAND,
    "demo": demo.COMMAND,
}
HELP = ("help", "--help", "-h", "-help")
WIDTH = 100  # characters of a line of help


def static_flags() -> tuple[str, ...]:
    """Names of the flags of all commands, without those of sampling and evaluation options."""
    return tuple(dict.fromkeys(name for c in COMMANDS.values() for name in c.flags))


def usage() -> str:
    """Help text of `aigc`."""
    lines = ["usage: aigc COMMAND --flag=value …", ""]
    for name, command in COMMANDS.items():
        shown = [f"--{f}=…" for f in command.required] + [f"[--{f}=…]" for f in command.optional]
        lines += [f"  aigc {name} {' '.join(shown[:2])}", f"      {command.help}"]
    return "\n".join([*lines, "", "aigc COMMAND --help lists the flags of a command."])


def command_usage(name: str) -> str:
    """Help text of a command."""
    command = COMMANDS[name]
    needed = "".join(f" --{flag}=…" for flag in command.required)
    lines = [f"usage: aigc {name}{needed} [--flag=value …]", "", f"  {command.help}", "", "flags:"]
    # absl appends a line of its own to the help of a flag that may be repeated.
    lines += [_wrap(flag, str(FLAGS[flag].help).partition(";\n")[0]) for flag in command.flags]
    groups = command.option_groups()
    for titles, texts in groups.items():
        lines += ["", f"options of {', '.join(titles)}:"]
        lines += [_wrap(flag, text) for flag, text in texts.items()]
    if groups:
        lines += ["", "Options that are not given keep their values in the run's config."]
    return "\n".join(lines)


def _wrap(flag: str, text: str) -> str:
    """Formats a flag and its help in lines of at most `WIDTH` characters."""
    start = f"  --{flag:<20} "
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * 25,
        break_long_words=False,
        break_on_hyphens=False,
    )


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; returns the program and the command.

    Raises:
      UserError: for an unknown command or flag, a missing flag, a flag of another command, a config
        file that cannot be loaded, or an override of an unknown key.
    """
    words = list(argv[1:])
    if not words or words[0] in HELP:
        print(usage())
        raise SystemExit(0)
    name = words[0]
    if name not in COMMANDS:
        raise UserError(f"there is no command '{name}': {did_you_mean(name, COMMANDS)}")
    command = COMMANDS[name]
    if set(words[1:]) & {"--help", "-h", "-help"}:
        print(command_usage(name))
        raise SystemExit(0)
    words = with_recipe_path(words)
    check_overrides(words[1:])
    import_workdir_plugins(words[1:])
    options = command.option_names()
    try:
        rest = FLAGS([argv[0], *words[1:]])
    except flags.UnrecognizedFlagError as e:
        hint = did_you_mean(e.flagname, (*command.flags, *options))
        raise UserError(f"there is no flag --{e.flagname}: {hint}") from e
    except (flags.Error, TypeError, ValueError, LookupError, AttributeError) as e:
        raise UserError(" ".join(str(e).split())) from e
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is not a flag: write --flag=value")
    for flag in static_flags():
        if FLAGS[flag].present and flag not in (*command.flags, *options):
            raise UserError(f"--{flag} is not a flag of 'aigc {name}'")
    for flag in command.required:
        names = [flag, *command.instead.get(flag, ())]
        if not any(FLAGS[n].present and FLAGS[n].value for n in names):
            raise UserError(f"'aigc {name}' needs {' or '.join(f'--{n}=…' for n in names)}")
    return [argv[0], name]


def with_recipe_path(words: Sequence[str]) -> list[str]:
    """Replaces the recipe's name in `--config` by the path of its file.

    Raises:
      UserError: if the recipe does not exist.
    """
    from aigc_jax.experiment.recipes import find_recipe

    found = list(words)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.lstrip("-") == "config" and word.startswith("-"):
            if equals:
                found[i] = f"{flag}={find_recipe(value)}"
            elif i + 1 < len(words):
                found[i + 1] = find_recipe(words[i + 1])
    return found


def import_workdir_plugins(words: Sequence[str]) -> None:
    """Imports the plugins of the run in `--workdir`, whose families define flags.

    Raises:
      UserError: if a plugin cannot be imported.
    """
    from aigc_jax.core.registry import import_plugins
    from aigc_jax.core.workdir import has_config, read_config

    workdir = os.path.expanduser(dict(_flag_values(words)).get("workdir", ""))
    if workdir and has_config(workdir):
        import_plugins(read_config(workdir).get("plugins", ()))


def check_overrides(words: Sequence[str]) -> None:
    """Checks the config file and the overrides before absl does, for clear errors.

    Raises:
      UserError: if the file cannot be loaded, or an override names an unknown key.
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
