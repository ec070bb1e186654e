"""The image families side by side on one data set, at equal time: docs/results.md.

    apt-get install dataset-fashion-mnist
    aigc prepare --from=idx:/usr/share/datasets/fashion-mnist --name=fashion --data_dir=data
    python benchmarks/results.py --minutes=10 --seeds=0,1,2

Each recipe is trained for each seed, for the number of steps that fit into the given time by a
short trial before the first seed (schedules are scaled), and evaluated. Finished work is skipped,
so the command can be interrupted and repeated; other load on the machine makes it slower, not
worse. Half of the time of a latent model is for its first stage.

`--table=models` writes the page's other table: metrics of autoencoders and likelihoods.
"""

import json
import os
import statistics
from typing import Any

import ml_collections
from absl import app, flags

import aigc_jax
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.runs.report.curves import side_by_side
from aigc_jax.runs.report.samples import write_samples
from aigc_jax.tools.bench.marked_block import provenance, replace_between
from aigc_jax.training.metric_log import finite_json, read_metrics

# Each recipe, and the recipe of its first stage, if it has one.
RECIPES = {
    "gan/dcgan28": "",
    "gan/r3gan_fashion": "",
    "vae/fashion": "",
    "diffusion/fashion": "",
    "diffusion/latent": "vae/kl",
    "lm/image_codes": "vae/fsq",
}
# Lengths of schedules, which follow the number of steps.
LENGTHS = (
    "warmup_steps", "decay_steps", "b2_steps", "burn_in_steps", "kl_warmup_steps", "critic_start"
)  # fmt: skip

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 10.0, "Time for the training of each run; 0: the recipes' own steps.")
flags.DEFINE_list("seeds", ["0"], "Seeds of training.")
flags.DEFINE_list("recipes", list(RECIPES), "Recipes, as in configs/.")
flags.DEFINE_string("data", "tfds:fashion", "As in data.source.")
flags.DEFINE_string("data_folder", "data", "As in data.data_dir.")
flags.DEFINE_integer("samples", 10_000, "Images to generate and compare.")
flags.DEFINE_string("folder", "runs/results", "Folder of the runs.")
flags.DEFINE_string("page", "docs/results.md", "Page whose table to replace.")
flags.DEFINE_enum("table", "images", ["images", "models"], "Which of the page's tables.")
flags.DEFINE_bool("table_only", False, "Train nothing, only write the table.")


def recipe_of(name: str, seed: int, stage: str) -> Any:
    """Returns a recipe with the data of the flags."""
    file, _, variant = name.partition(":")
    recipe = load_recipe(os.path.join("configs", f"{file}.py:{variant}".rstrip(":")))
    recipe.seed = seed
    recipe.data.source, recipe.data.data_dir = FLAGS.data, FLAGS.data_folder
    recipe.first_stage.workdir = stage
    recipe.eval.every, recipe.eval.num_samples = 0, FLAGS.samples
    if FLAGS.table == "images" and "importance_samples" in recipe.objective:
        recipe.objective.importance_samples = 1  # the bound is not in the table, and takes long
    recipe.sample.every = 0
    return recipe


def speed(name: str, recipe: Any) -> float:
    """Steps per second in a short trial, which is run once for all seeds."""
    trial_dir = os.path.join(FLAGS.folder, name.replace("/", "_"), "trial")
    note = os.path.join(trial_dir, "speed.json")
    if not os.path.exists(note):
        trial = recipe.copy_and_resolve_references()
        trial.train.steps, trial.train.log_every, trial.checkpoint.every = 60, 10, 0
        aigc_jax.train(trial, trial_dir, name="speed")
        rates = [r["steps_per_second"] for r in read_metrics(trial_dir) if r["kind"] == "train"]
        with open(note, "w") as f:
            json.dump({"steps_per_second": statistics.median(rates[1:])}, f)
    with open(note) as f:
        return json.load(f)["steps_per_second"]


def stretch(section: Any, factor: float) -> None:
    """Scales the lengths of all schedules of a recipe."""
    for key, value in section.items():
        if isinstance(value, ml_collections.ConfigDict):
            stretch(value, factor)
        elif key in LENGTHS:
            section[key] = round(value * factor)


def train(name: str, seed: int, minutes: float, stage: str = "") -> str:
    """Trains a recipe with a seed; returns its workdir."""
    workdir = os.path.join(FLAGS.folder, name.replace("/", "_"), str(seed))
    recipe = recipe_of(name, seed, stage)
    if minutes:
        steps = round(60 * minutes * speed(name, recipe))
        stretch(recipe, steps / recipe.train.steps)
        recipe.train.steps = steps
    aigc_jax.train(recipe, workdir, name=f"{name} {seed}")
    return workdir


def evaluate(name: str, seed: int) -> None:
    """Trains and evaluates a recipe with a seed; writes result.json into its workdir."""
    stage, minutes = RECIPES.get(name, ""), FLAGS.minutes
    behind = train(stage, seed, minutes / 2) if stage else ""
    workdir = train(name, seed, minutes / 2 if stage else minutes, behind)
    path = os.path.join(workdir, "result.json")
    if os.path.exists(path):
        return
    metrics = aigc_jax.evaluate(workdir)
    images = aigc_jax.sample(workdir, num=100)
    write_samples(images, os.path.join(workdir, "samples", "result.png"))
    steps = max(r["step"] for r in read_metrics(workdir) if r["kind"] == "train")
    with open(path, "w") as f:
        json.dump(finite_json({**metrics, "steps": steps, "minutes": minutes}), f, indent=1)


def results(name: str) -> list[dict[str, Any]]:
    """Results of all finished seeds."""
    folder = os.path.join(FLAGS.folder, name.replace("/", "_"))
    found = []
    for seed in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, seed, "result.json")
        if os.path.exists(path):
            with open(path) as f:
                found.append(json.load(f))
    return found


# Tables: name in the marks of the page, and columns.
TABLES = {
    "images": (
        "results",
        {
            "Fréchet": "frechet_distance_classifier",
            "kernel": "kernel_distance_classifier",
            "precision": "precision_classifier",
            "recall": "recall_classifier",
            "density": "density_classifier",
            "coverage": "coverage_classifier",
        },
    ),
    "models": (
        "models",
        {
            "IWAE bound, nats": "iwae",
            "bits/dim": "bits_per_dim",
            "active units": "active_units",
            "PSNR, dB": "psnr",
            "Fréchet of reconstructions": "reconstruction_frechet_distance_classifier",
            "codes used": "codes_used",
            "code perplexity": "code_perplexity",
        },
    ),
}


def cell(runs: list[dict[str, Any]], key: str) -> str:
    """Mean over seeds ± their standard deviation; of one seed its interval."""
    values = [run[key] for run in runs if run.get(key) is not None]
    if not values:
        return "–"
    if len(values) > 1:
        return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
    ends = [runs[0].get(f"{key}_{end}") for end in ("low", "high")]
    interval = "" if None in ends else f" ({ends[0]:.3f} … {ends[1]:.3f})"
    return f"{values[0]:.3f}{interval}"


def table(columns: dict[str, str]) -> str:
    """The Markdown table of all results."""
    lines = [
        f"| recipe | seeds | minutes | steps | {' | '.join(columns)} |",
        "|---|---|---|---|" + "---|" * len(columns),
    ]
    everything = []
    for name in FLAGS.recipes:
        runs = results(name)
        everything += runs
        if runs:
            minutes, steps = runs[0]["minutes"], runs[0]["steps"]
            cells = [cell(runs, key) for key in columns.values()]
            lines.append(
                f"| `{name}` | {len(runs)} | {minutes:g} | {steps:,} | {' | '.join(cells)} |"
            )
    real_data = [cell(everything[:1], f"{key}_real_data") for key in columns.values()]
    if set(real_data) != {"–"}:
        lines.append(f"| training images themselves | | | | {' | '.join(real_data)} |")
    return "\n".join(lines)


def write_page() -> None:
    """Replaces the table and its provenance between its marks in the page."""
    mark, columns = TABLES[FLAGS.table]
    text = f"{provenance()}\n\n{table(columns)}"
    replace_between(FLAGS.page, f"<!-- {mark} -->", f"<!-- end of {mark} -->", text)


def pictures() -> None:
    """Samples of each recipe's first seed in one row, beside the page."""
    folder = FLAGS.folder
    paths = {
        name: os.path.join(folder, name.replace("/", "_"), FLAGS.seeds[0], "samples/result.png")
        for name in FLAGS.recipes
    }
    there = {name: path for name, path in paths.items() if os.path.exists(path)}
    if there:
        side_by_side(there, os.path.splitext(FLAGS.page)[0] + ".png")


def main(argv: list[str]) -> None:
    del argv
    for seed in FLAGS.seeds if not FLAGS.table_only else ():
        for name in FLAGS.recipes:
            evaluate(name, int(seed))
            write_page()
    write_page()
    if FLAGS.table == "images":
        pictures()


if __name__ == "__main__":
    app.run(main)
