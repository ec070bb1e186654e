"""`aigc bench`."""

import json

from absl import flags

from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.core.errors import UserError

flags.DEFINE_float("seconds", 10.0, "How long to take steps.")
flags.DEFINE_string(
    "synthetic", None, "The data's shape: text, or HxWxC as in 32x32x3, :CLASSES after."
)
flags.DEFINE_string("json", None, "File for the figures.")
flags.DEFINE_string("profile", None, "Folder for a trace; prints the most expensive operations.")
flags.DEFINE_string("check", None, "Baseline to compare with: is anything slower?")
flags.DEFINE_string("write_baseline", None, "Baseline to measure and write.")

ONE_CONFIG = ("config", "seconds", "synthetic", "json", "profile")
BASELINE = ("check", "write_baseline")


def run() -> int | None:
    from aigc_jax.core.workdir import write_text_atomically
    from aigc_jax.experiment import build
    from aigc_jax.tools.bench import check
    from aigc_jax.tools.bench.measure import measure
    from aigc_jax.tools.bench.table import table

    baselines = [name for name in BASELINE if FLAGS[name].present]
    if baselines:
        others = [name for name in ONE_CONFIG if FLAGS[name].present]
        if others or len(baselines) > 1:
            raise UserError(
                f"--{baselines[0]} times the recipes of a baseline: leave out"
                f" --{(others or baselines[1:])[0]}"
            )
        if FLAGS.check:
            return check.check(FLAGS.check)
        check.write(FLAGS.write_baseline)
        print(f"written: {FLAGS.write_baseline}")
        return None
    options = dict(shape=FLAGS.synthetic or "", folder=FLAGS.profile or "")
    report = measure(build.parse_config(FLAGS.config), seconds=FLAGS.seconds, **options)
    print(table(report))
    if FLAGS.json:
        write_text_atomically(FLAGS.json, json.dumps(report, indent=1) + "\n")
        print(f"saved: {FLAGS.json}")
    return None


COMMAND = Command(
    help="times a recipe on this machine",
    run=run,
    required=("config",),
    optional=(*ONE_CONFIG[1:], *BASELINE),
    instead={"config": BASELINE},
)
