"""`aigc sample`; the families' sampling options are its flags."""

import os
import sys

from absl import flags

from aigc_jax.cli.command import FLAGS, Command, given, sampling_options
from aigc_jax.core.errors import UserError

flags.DEFINE_integer("num", None, "Number of samples.")
flags.DEFINE_multi_string("prompt", None, "Text to continue; may be given several times.")
flags.DEFINE_bool("stream", False, "Print the text while it is generated.")
flags.DEFINE_string("image", None, "Image to start from, resized and cropped to the model's size.")
flags.DEFINE_string("mask", None, "Image file of the same size: white pixels are generated again.")


def run() -> None:
    from aigc_jax.modalities.text.sample_file import join_texts
    from aigc_jax.runs.report.samples import write_samples
    from aigc_jax.runs.sample import sample

    if FLAGS.stream and (FLAGS.num or 1) > 1:
        raise UserError("--stream prints one text: leave out --num")
    if FLAGS.stream and len(FLAGS.prompt or ()) > 1:
        raise UserError("--stream prints one text: give one --prompt")
    prompt = FLAGS.prompt[0] if FLAGS.prompt and len(FLAGS.prompt) == 1 else FLAGS.prompt
    begun: list[bool] = []

    def show(piece: str) -> None:
        # The prompt is printed with the first piece, after the family has accepted to stream.
        print(piece if begun else f"{prompt or ''}{piece}", end="", flush=True)
        begun.append(True)

    samples = sample(
        FLAGS.workdir,
        FLAGS.num,
        FLAGS.seed,
        prompt=prompt,
        show=show if FLAGS.stream else None,
        **given(("sigma_rel", "image", "mask", "mesh")),
        **COMMAND.given_options(),
    )
    out = FLAGS.out or os.path.join(FLAGS.workdir, "samples", f"seed_{FLAGS.seed}")
    path = write_samples(samples, out)
    if FLAGS.stream:
        print()
    elif isinstance(samples, list):
        print(join_texts(samples))
    print(f"saved: {path}", file=sys.stderr if isinstance(samples, list) else sys.stdout)


COMMAND = Command(
    help="generates samples with a trained workdir",
    run=run,
    required=("workdir",),
    optional=(
        *("num", "seed", "out", "sigma_rel", "deterministic", "prompt", "stream"),
        *("image", "mask", "mesh"),
    ),
    options=sampling_options,
    hidden_options=("every", "num", "prompts"),
)
