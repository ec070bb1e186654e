"""`aigc convert`."""

from absl import flags

from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.core.errors import UserError

flags.DEFINE_string(
    "from", None, "KIND:PATH of data; hf:DIR, gguf:FILE, diffusers:DIR or peft:DIR of a model."
)
flags.DEFINE_string("base", None, "hf:DIR or gguf:FILE: base model of --from=peft:DIR.")
flags.DEFINE_string("to", None, "hf:DIR or diffusers:DIR, or peft:DIR for adapters alone.")
flags.DEFINE_string("dtype", None, "float32, bfloat16 or float16: type of the exported weights.")


def run() -> None:
    from aigc_jax.interop.convert import export_model, import_model

    source, target = FLAGS["from"].value, FLAGS.to
    if bool(source) == bool(target):
        raise UserError(
            "'aigc convert' needs either --from=hf:DIR (or gguf:FILE, diffusers:DIR, peft:DIR) or"
            " --to=hf:DIR (or diffusers:DIR, peft:DIR)"
        )
    if FLAGS.dtype and not (target or "").startswith(("hf:", "diffusers:")):
        raise UserError("--dtype is for --to=hf:DIR and diffusers:DIR: leave it out here")
    if FLAGS.base and not source:
        raise UserError("--base is for --from=peft:DIR: leave it out here")
    if source:
        import_model(source, FLAGS.workdir, FLAGS.base or "")
        print(f"converted: {FLAGS.workdir}")
        text = "" if source.startswith("diffusers:") else " --prompt=… --stream"
        print(f"try it with aigc sample --workdir={FLAGS.workdir}{text}")
    else:
        print(f"converted: {export_model(FLAGS.workdir, target, FLAGS.dtype)}")


COMMAND = Command(
    help="imports weights from other libraries, or exports them",
    run=run,
    required=("workdir",),
    optional=("from", "to", "base", "dtype"),
)
