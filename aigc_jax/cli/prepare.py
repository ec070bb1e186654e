"""`aigc prepare`."""

from absl import flags

from aigc_jax.cli.command import FLAGS, Command

flags.DEFINE_string("name", None, "Name of the data set to write.")
flags.DEFINE_integer("image_size", 0, "Resize and crop images to this many pixels a side.")
flags.DEFINE_string("text_field", "text", "Field of a JSONL record that holds its text.")
flags.DEFINE_string("label_field", "label", "Field of a JSONL record that holds its class, if any.")

FORMATS = {"messages": " --config.data.format=chat", "conll": " --config.data.format=tags"}


def run() -> None:
    from aigc_jax.modalities.prepare import prepare

    source: str = FLAGS["from"].value or ""
    path = prepare(
        source,
        FLAGS.name,
        FLAGS.data_dir,
        image_size=FLAGS.image_size,
        text_field=FLAGS.text_field,
        label_field=FLAGS.label_field,
    )
    print(f"prepared: {path}")
    kind = source.partition(":")[0]
    print(
        f"train on it with --config.data.source=tfds:{FLAGS.name}"
        f" --config.data.data_dir={FLAGS.data_dir}{FORMATS.get(kind, '')}"
    )


COMMAND = Command(
    help="turns own files into a data set",
    run=run,
    required=("from", "name"),
    optional=("data_dir", "image_size", "text_field", "label_field"),
)
