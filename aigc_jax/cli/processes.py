"""Flags of a run of several processes."""

from absl import flags

from aigc_jax.cli.command import FLAGS

flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; found on a cluster if left out.")
flags.DEFINE_integer("num_processes", None, "Number of processes; found on a cluster if left out.")
flags.DEFINE_integer("process_id", None, "Number of this process from 0; found on a cluster.")
flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes to start.")

PROCESS_FLAGS = ("coordinator", "num_processes", "process_id", "join_timeout")


def join_processes() -> None:
    """Joins the other processes of the run, if there are any."""
    from aigc_jax.distributed.processes import join_processes

    join_processes(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.join_timeout)
