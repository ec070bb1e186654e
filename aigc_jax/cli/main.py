"""The entry point: parses flags, runs the command, and turns errors into exit codes."""

import contextlib
import logging as stdlib_logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, logging

from aigc_jax.cli.command import FLAGS
from aigc_jax.cli.flags import COMMANDS, parse_flags
from aigc_jax.cli.train import PREEMPTION
from aigc_jax.core import environment
from aigc_jax.core.errors import Stopped, UserError
from aigc_jax.core.streams import make_streams_unbreakable
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.main_process import is_main_process

# Flags with paths; shells do not expand the ~ of --workdir=~/w.
PATHS = ("workdir", "out", "json", "profile", "check", "write_baseline")


def main(argv: Sequence[str]) -> int | None:
    for name in PATHS:
        if path := FLAGS[name].value:
            FLAGS[name].value = os.path.expanduser(path)
    if FLAGS.deterministic:
        make_deterministic()
    return COMMANDS[argv[1]].run()


def make_deterministic() -> None:
    """Sets the XLA flags for bit-exact results on a GPU; must run before JAX is imported.

    Operations whose results depend on the order of atomic additions are replaced, and kernels are
    not chosen by timing them. A CPU needs nothing.
    """
    wanted = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {wanted}".strip()


def run(argv: Sequence[str] | None = None) -> None:
    """The entry point: `aigc` and `python -m aigc_jax.main`."""
    environment.configure()
    make_streams_unbreakable()
    quieten()
    argv = list(argv or sys.argv)
    try:
        # Before anything slow is imported, so that a signal is heard at any time.
        with (
            PREEMPTION.listen() if argv[1:2] in (["train"], ["sweep"]) else contextlib.nullcontext()
        ):
            app.run(main, argv=argv, flags_parser=parse_flags)
    except UserError as e:
        if e.code != Stopped.code and not e.reported_by_main:
            print(f"aigc: error: {e}", file=sys.stderr)
        elif is_main_process():
            print(f"aigc: {e}", file=sys.stderr)
        leave(e.code)
    except KeyboardInterrupt:
        training = argv[1:2] == ["train"]
        hint = "; the same command resumes from the newest checkpoint" if training else ""
        print(f"aigc: interrupted{hint}", file=sys.stderr)
        sys.exit(130)


def quieten() -> None:
    """Silences the logs of libraries, which repeat exceptions."""
    logging.set_verbosity(logging.FATAL)
    stdlib_logging.getLogger("asyncio").setLevel("CRITICAL")
    hook = sys.excepthook

    def without_echoes(kind: type, error: BaseException, trace: Any) -> None:
        # After a failed save TensorStore reports its other writes to a closed event loop.
        if str(error) != "Event loop is closed":
            hook(kind, error, trace)

    sys.excepthook = without_echoes


def leave(code: int) -> None:
    """Exits; one of several processes does not wait for the others, which may never end."""
    if kv_store.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
