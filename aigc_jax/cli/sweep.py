"""`aigc sweep`."""

from absl import flags
from ml_collections import config_flags

from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.cli.train import PREEMPTION

flags.DEFINE_multi_string("search", None, "KEY=a,b,c or KEY=low..high[:log]; or a file of them.")
flags.DEFINE_integer("trials", 20, "Number of runs.")
flags.DEFINE_string("metric", "loss", "Held-out metric to search by.")
flags.DEFINE_bool("maximize", False, "Whether the metric is better when larger.")
flags.DEFINE_bool("prune", False, "End runs early that evaluate worse than half of the others.")
flags.DEFINE_string("storage", None, "Database of the search, such as sqlite:///…; else a file.")


def run() -> None:
    from aigc_jax.tools.sweep.search_space import Search
    from aigc_jax.tools.sweep.sweep import sweep

    table = sweep(
        Search.of(FLAGS.config, FLAGS.search, FLAGS.metric, FLAGS.maximize),
        FLAGS.workdir,
        config_file=config_flags.get_config_filename(FLAGS["config"]),
        trials=FLAGS.trials,
        prune=FLAGS.prune,
        storage=FLAGS.storage or "",
        seed=FLAGS.seed if FLAGS["seed"].present else None,
        flags=("--deterministic",) if FLAGS.deterministic else (),
        stop=PREEMPTION,
    )
    print(table)


COMMAND = Command(
    help="searches hyperparameters by many runs, on one machine or several",
    run=run,
    required=("config", "workdir", "search"),
    optional=("trials", "metric", "maximize", "prune", "storage", "seed", "deterministic"),
)
