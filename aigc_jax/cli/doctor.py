"""`aigc doctor`."""

from absl import flags

from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.cli.processes import PROCESS_FLAGS, join_processes
from aigc_jax.core.errors import UserError

flags.DEFINE_bool("distributed", False, "Test and time the network between the processes.")


def run() -> int:
    from aigc_jax.tools.doctor import check_machine, check_workdir

    if FLAGS.distributed:
        from aigc_jax.distributed.allreduce_bench import bench_allreduce

        if FLAGS.workdir:
            raise UserError("--distributed times the network: leave out --workdir")
        join_processes()
        return bench_allreduce()
    if any(FLAGS[name].present for name in PROCESS_FLAGS):
        raise UserError("to time the network between processes, add --distributed")
    return check_workdir(FLAGS.workdir) if FLAGS.workdir else check_machine()


COMMAND = Command(
    help="reports on this machine, on a workdir, or on the network",
    run=run,
    optional=("workdir", "distributed", *PROCESS_FLAGS),
)
