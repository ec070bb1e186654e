"""`aigc bench`."""

import json

from absl import flags

from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.core.errors import UserError

flags.DEFINE_float("seconds", 10.0, "Seconds of timed train steps.")
flags.DEFINE_string(
    "synthetic", None, "Random data of this shape: text, or HxWxC[:CLASSES] such as 32x32x3:10."
)
flags.DEFINE_string("json", None, "File to write all figures to.")
flags.DEFINE_string("profile", None, "Folder to write a trace to; prints the top operations.")
flags.DEFINE_string("check", None, "Baseline to compare with; exits with 1 if something is slower.")
flags.DEFINE_string("write_baseline", None, "File to measure and write a baseline to.")

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
            return check.check_baseline(FLAGS.check)
        check.write_baseline(FLAGS.write_baseline)
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
    help="measures a recipe on this machine",
    run=run,
    required=("config",),
    optional=(*ONE_CONFIG[1:], *BASELINE),
    instead={"config": BASELINE},
)
