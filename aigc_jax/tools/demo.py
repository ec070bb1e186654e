"""`aigc demo`: trains four families on embedded data and writes a page of samples and metrics."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.experiment.restore import restore
from aigc_jax.modalities import sources
from aigc_jax.modalities.image.grid import save_images
from aigc_jax.runs.evaluate import evaluate
from aigc_jax.runs.report.curves import further, save_curves, side_by_side
from aigc_jax.runs.report.page import MetricRow, Section, write_page
from aigc_jax.runs.report.samples import write_samples
from aigc_jax.runs.report.terminal import terminal_table
from aigc_jax.runs.sample import sample
from aigc_jax.runs.train import train
from aigc_jax.training.health_checks import TriggeredCheck, health_checks_of, triggered_checks
from aigc_jax.training.metric_log import read_metrics

FAMILIES = {
    "lm": ("Transformer LM", "A decoder-only transformer trained on the Python reference."),
    "gan": ("GAN", "A class-conditional DCGAN with the relativistic loss and R1 + R2."),
    "vae": ("VAE", "A convolutional VAE with a Gaussian likelihood of learned scale."),
    "diffusion": (
        "Diffusion",
        "A class-conditional U-Net with EDM preconditioning, 18 Heun steps.",
    ),
}
CURVES = (
    "loss",
    "critic/loss",
    "generator/loss",
    "bits_per_byte",
    "elbo",
    "iwae",
    "frechet_distance_classifier",
)


def run_demo(workdir: str) -> str:
    """Trains, evaluates and samples each family; writes `index.html` and returns its path.

    Families that are already trained in the workdir are not trained again.

    Args:
      workdir: folder of the runs, one subfolder per family.
    """
    workdir = os.path.expanduser(workdir)
    began = time.perf_counter()
    sections, table = [], [("family", "trained", "metric", "this run", "references")]
    for family in FAMILIES:
        section, seconds = run_family(family, os.path.join(workdir, family))
        sections.append(section)
        for i, row in enumerate(section.rows):
            references = ", ".join(f"{k} {v:.3f}" for k, v in row.references.items())
            first = (FAMILIES[family][0], f"{seconds:.0f} s") if i == 0 else ("", "")
            table.append((*first, row.name, f"{row.value:.3f}", references))
    path = write_page(
        os.path.join(workdir, "index.html"),
        "aigc_jax: four families, one train step",
        "All models below were trained, evaluated and sampled on this machine; this call took"
        f" {seconds_since(began)} seconds.",
        sections,
    )
    overview(workdir)
    print(f"\n{terminal_table(table)}\n\n{seconds_since(began)} s in all; open {path}")
    return path


def seconds_since(began: float) -> int:
    """Seconds since a value of `time.perf_counter`, rounded."""
    return round(time.perf_counter() - began)


def overview(workdir: str) -> str:
    """Writes samples of the image families beside held-out images; returns the path."""
    drawn = {
        FAMILIES[family][0]: os.path.join(workdir, family, "samples", "demo.png")
        for family in ("gan", "vae", "diffusion")
    }
    held_out = os.path.join(workdir, "vae", "samples", "held_out.png")
    pictures = {**drawn, "held out": held_out}
    return side_by_side(pictures, os.path.join(workdir, "overview.png"))


def run_family(family: str, workdir: str) -> tuple[Section, float]:
    """Trains a family; returns its section of the page and the seconds of training."""
    recipe = load_recipe(f"{family}/quickstart")
    began = time.perf_counter()
    train(recipe, workdir, name=f"{family:<9}")
    seconds = time.perf_counter() - began
    metrics = evaluate(workdir)
    samples = sample(workdir)
    saved = write_samples(samples, os.path.join(workdir, "samples", "demo"))
    records = read_metrics(workdir)
    # The curves include the last evaluation.
    records.append({**metrics, "kind": "eval"})
    trained = restore(workdir)[0]
    alarms = triggered_checks(health_checks_of(trained.objective), records)
    title, about = FAMILIES[family]
    section = Section(title, about, metric_rows(metrics), alarms, facts=[
        f"aigc train --config=configs/{family}/quickstart.py --workdir={workdir}"
        f" · {recipe.train.steps} steps · {seconds:.0f} s",
    ])  # fmt: skip
    if isinstance(samples, list):
        section.texts = samples
    else:
        real = held_out_images(workdir, trained.config.data, len(samples))
        section.pictures["generated"] = saved
        section.pictures["held-out images, for comparison"] = real
        near = os.path.join(workdir, "samples", "neighbours.png")
        section.pictures["generated images beside the training images nearest to them"] = near
    section.pictures |= curves(workdir, records, alarms)
    return section, seconds


def curves(
    workdir: str, records: Sequence[dict[str, Any]], alarms: Sequence[TriggeredCheck]
) -> dict[str, str]:
    """Plots the metrics of a run; returns `{caption: PNG}` of the main and the other metrics."""
    path = os.path.join(workdir, "curves.png")
    found = {"curves": save_curves(records, path, CURVES, alarms)}
    if rest := further(records, CURVES):
        path = os.path.join(workdir, "further_curves.png")
        found["the other metrics of the run"] = save_curves(records, path, rest, alarms)
    return found


def held_out_images(workdir: str, data: Data, num: int) -> str:
    """Writes a grid of real images, ordered by class like the generated ones; returns its path."""
    validation = sources.load_source(data).validation
    examples = [validation[i] for i in range(min(num * 3, len(validation)))]
    classes = sorted({int(e.get("label", 0)) for e in examples})
    queues = {c: [e["image"] for e in examples if int(e.get("label", 0)) == c] for c in classes}
    images = [queues[c].pop() for _ in range(num) for c in classes if queues[c]][:num]
    return save_images(np.stack(images), os.path.join(workdir, "samples", "held_out.png"))


def metric_rows(metrics: dict[str, Any]) -> list[MetricRow]:
    """Rows of the page for the metrics of a family, with reference values."""
    makers: dict[str, Callable[[], MetricRow]] = {
        "bits_per_byte": lambda: MetricRow(
            "bits per byte",
            metrics["bits_per_byte"],
            references={
                "bz2": metrics["bits_per_byte_bz2"],
                "order-3 model": metrics["bits_per_byte_order3"],
            },
        ),
        "iwae": lambda: MetricRow(
            "IWAE bound, nats per image", metrics["iwae"], "higher", {"ELBO": metrics["elbo"]}
        ),
        "bits_per_dim": lambda: MetricRow("bits per dimension", metrics["bits_per_dim"]),
        "frechet_distance_classifier": lambda: MetricRow(
            "Fréchet classifier distance",
            metrics["frechet_distance_classifier"],
            references={
                "real data": metrics["frechet_distance_classifier_real_data"],
                "Gaussian per class": metrics["frechet_distance_classifier_gaussian"],
            },
        ),
    }
    return [make() for key, make in makers.items() if key in metrics]
