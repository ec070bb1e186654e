"""`aigc train`."""

from absl import flags

from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.cli.processes import PROCESS_FLAGS, join_processes
from aigc_jax.distributed.main_process import is_main_process
from aigc_jax.distributed.preemption import PreemptionHandler

flags.DEFINE_bool("deterministic", False, "Only operations that repeat bit for bit, on a GPU too.")

PREEMPTION = PreemptionHandler()  # SIGTERM and Ctrl-C of this process


def run() -> None:
    from aigc_jax.runs.train import train

    join_processes()
    train(FLAGS.config, FLAGS.workdir, stop=PREEMPTION)
    if is_main_process():
        print(f"trained: {FLAGS.workdir}")


COMMAND = Command(
    help="trains a recipe, or resumes it",
    run=run,
    required=("config", "workdir"),
    optional=("deterministic", *PROCESS_FLAGS),
)
