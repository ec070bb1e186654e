"""`aigc plan`."""

from absl import flags

from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.core.errors import UserError

flags.DEFINE_string("topology", None, "Devices to plan for: v5p:8x8x4, v5p-512, cpu:8 or gpu:N.")
flags.DEFINE_integer("slices", 1, "Number of slices, connected by DCN.")
flags.DEFINE_float("tokens", None, "Tokens or images of the whole training; default: the recipe's.")
flags.DEFINE_bool("sweep_mesh", False, "Plan the meshes that fit, and rank them by speed.")
flags.DEFINE_integer("tries", 6, "Number of meshes to compile with --sweep_mesh.")
flags.DEFINE_bool("fit", False, "Find changes that make it fit: sharding, remat, accumulation.")


def run() -> int:
    from aigc_jax.tools.plan.command import run_plan

    if FLAGS.sweep_mesh and FLAGS.fit:
        raise UserError("--sweep_mesh tries meshes and --fit changes of one: leave out one of them")
    options = dict(shape=FLAGS.synthetic or "", slices=FLAGS.slices, tokens=FLAGS.tokens or 0.0)
    how = "sweep" if FLAGS.sweep_mesh else "fit" if FLAGS.fit else ""
    return run_plan(
        FLAGS.config, FLAGS.topology, how=how, tries=FLAGS.tries, json_file=FLAGS.json, **options
    )


COMMAND = Command(
    help="compiles a recipe's step for devices that are not attached, and estimates a run's cost",
    run=run,
    required=("config", "topology"),
    optional=("slices", "synthetic", "tokens", "sweep_mesh", "tries", "fit", "json"),
)
