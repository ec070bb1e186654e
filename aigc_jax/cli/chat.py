"""`aigc chat`."""

from absl import flags

from aigc_jax.cli.command import FLAGS, Command, sampling_options

flags.DEFINE_string("system", "", "System prompt of the chat.")


def run() -> None:
    from aigc_jax.runs.chat import Chat, talk

    talk(Chat(FLAGS.workdir, FLAGS.system, FLAGS.seed, **COMMAND.given_options()))


COMMAND = Command(
    help="chats with a trained language model",
    run=run,
    required=("workdir",),
    optional=("system", "seed"),
    options=sampling_options,
    hidden_options=("every", "num", "prompts"),
)
