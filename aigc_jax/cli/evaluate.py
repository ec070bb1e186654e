"""`aigc eval`."""

import json
from typing import Any

from absl import flags

from aigc_jax.cli.command import FLAGS, Command
from aigc_jax.core.config import Eval
from aigc_jax.core.errors import UserError

flags.DEFINE_string("source", None, "Data to evaluate on instead of the run's, as in data.source.")
flags.DEFINE_string("images", None, "Folder or file of images to evaluate instead of samples.")
flags.DEFINE_float("sigma_rel", None, "Width of the power-function EMA; needs ema.sigma_rels.")


def run() -> None:
    from aigc_jax.modalities.text.metrics.classification_report import Report
    from aigc_jax.runs.evaluate import evaluate
    from aigc_jax.training.metric_log import finite_json

    data_dir = FLAGS.data_dir if FLAGS["data_dir"].present else ""
    options = COMMAND.given_options()
    if FLAGS.images:
        metrics = _evaluate_images(data_dir, options)
    else:
        if FLAGS.out:
            raise UserError("--out is for --images=…: pictures of a run are written to its workdir")
        options |= {k: FLAGS[k].value for k in ("sigma_rel", "mesh") if FLAGS[k].present}
        options |= {"seed": FLAGS.seed} if FLAGS["seed"].present else {}
        metrics = evaluate(FLAGS.workdir, data_dir, FLAGS.source or "", **options)
    if "report" in metrics:
        print(Report.from_json(metrics["report"]).table(), end="\n\n")
    print(json.dumps(finite_json(metrics)))


def _evaluate_images(data_dir: str, options: dict[str, Any]) -> dict[str, Any]:
    from aigc_jax.runs.evaluate_images import evaluate_images

    if "num_samples" in options or FLAGS["seed"].present:
        raise UserError(
            "--num_samples and --seed are for generated samples: leave them out with --images"
        )
    where = dict(workdir=FLAGS.workdir or "", data_dir=data_dir, out=FLAGS.out or "")
    return evaluate_images(FLAGS.images, FLAGS.source or "", **where, **options)


def _options() -> dict[str, type]:
    """The section `eval` and the sections of all modalities."""
    from aigc_jax.core.modality import MODALITIES

    own = {f"eval.{name}": MODALITIES[name].eval_options for name in MODALITIES.names()}
    return {"eval": Eval, **{name: section for name, section in own.items() if section}}


COMMAND = Command(
    help="evaluates a trained workdir on held-out data",
    run=run,
    required=("workdir",),
    optional=(
        *("data_dir", "source", "sigma_rel", "images", "out", "seed", "mesh", "deterministic"),
    ),
    instead={"workdir": ("images",)},
    options=_options,
    hidden_options=("every", "seed"),
)
