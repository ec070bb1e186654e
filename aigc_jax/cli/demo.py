"""`aigc demo`."""

from aigc_jax.cli.command import FLAGS, Command


def run() -> None:
    from aigc_jax.tools.demo import run_demo

    run_demo(FLAGS.workdir)


COMMAND = Command(help="trains all four families and writes a page", run=run, required=("workdir",))
