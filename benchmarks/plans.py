"""Plans of the large recipes on 256 chips of three kinds, and published figures: docs/plans.md.

    python benchmarks/plans.py                      # all of docs/plans.md; hours on a small machine
    python benchmarks/plans.py --only=llama_8b      # only plans with this prefix

It needs `pip install 'aigc-jax[plan]'` and no accelerator. Every plan is an `aigc plan` in its own
process, which writes benchmarks/plans/NAME.json; the page is written from these files.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from importlib import metadata
from typing import Any

from aigc_jax.core.workdir import write_text_atomically
from aigc_jax.tools.bench.table import seconds
from aigc_jax.training.oom import format_bytes

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
KEPT = os.path.join(HERE, "plans")
PAGE = os.path.join(ROOT, "docs", "plans.md")

V5E, V5P, V6E = "v5e:16x16", "v5p:8x8x4", "v6e:16x16"
SOLD = {V5E: "v5e-256", V5P: "v5p-512", V6E: "v6e-256"}
LATENTS = "latents:32x32x4:1000"


@dataclasses.dataclass(frozen=True)
class Case:
    """One plan.

    Attributes:
      name: of its file.
      config: the recipe.
      topology: devices to plan for.
      changes: fields of the config.
      tokens: tokens or images of the whole training.
      shape: of the data, if the config does not determine it.
      published: MaxText's MFU and tokens per second and chip, if it has published such a run.
      source: of the published figures.
    """

    name: str
    config: str
    topology: str
    changes: dict[str, Any]
    tokens: float = 0.0
    shape: str = ""
    published: tuple[float, float] | None = None
    source: str = ""

    def command(self) -> list[str]:
        fields = [f"--config.{k}={v}" for k, v in self.changes.items()]
        more = [f"--tokens={self.tokens:g}"] if self.tokens else []
        more += [f"--synthetic={self.shape}"] if self.shape else []
        return ["plan", f"--config={self.config}", f"--topology={self.topology}", *fields, *more]


def cases() -> list[Case]:
    """The recipes on each topology, then the runs that MaxText has published."""
    one = {"model.vocab_size": 128_256, "data.batch_size": 512, "eval.batch_size": 512}
    lm = "configs/lm/llama_{}.py"
    found = []
    for topology in (V5E, V5P, V6E):
        sold = SOLD[topology]
        found += [
            Case(f"llama_1b_{sold}", lm.format("1b"), topology,
                 {**one, "mesh": "fsdp=256", "train.accumulate": 1}, 25e9),
            Case(f"llama_8b_{sold}", lm.format("8b"), topology, MESHES_8B[topology], 15e12),
            Case(f"llama_70b_{sold}", lm.format("70b"), topology, MESHES_70B[topology], 15e12),
            Case(f"dit_xl2_{sold}", "configs/diffusion/dit_xl2.py", topology,
                 {"mesh": "data=16,fsdp=16" if topology == V5E else "data=256",
                  "data.batch_size": 4096, "eval.batch_size": 256},
                 1.8e9, LATENTS),
        ]  # fmt: skip
    return [*found, *published()]


MESHES_8B: dict[str, dict[str, Any]] = {
    V5E: {"mesh": "fsdp=256", "train.accumulate": 2},
    V5P: {"mesh": "fsdp=256"},
    V6E: {"mesh": "fsdp=256"},
}
MESHES_70B: dict[str, dict[str, Any]] = {
    V5E: {"mesh": "fsdp=256", "train.accumulate": 2},
    V5P: {"mesh": "fsdp=256"},
    V6E: {"mesh": "fsdp=256", "train.accumulate": 2},
}


def published() -> list[Case]:
    """The shapes of MaxText's published runs: layers, widths, context and rows a chip."""
    adam = {"optim.name": "adamw", "objective.z_loss": 0.0, "data.format": "stream"}
    return [
        Case(
            "maxtext_llama2_70b_v5p-512", "configs/lm/llama_70b.py", V5P,
            {**adam, "mesh": "fsdp=256", "data.batch_size": 1024, "eval.batch_size": 1024,
             "data.seq_len": 4096, "model.context": 4096, "model.vocab_size": 32_000},
            published=(0.654, 692),
            source="MaxText, docs/reference/models/tiering.md; src/maxtext/configs/tpu/v5p/"
            "llama2_70b.sh: 4 rows of 4096 tokens a chip, remat save_dot_except_mlpwi",
        ),
        Case(
            "maxtext_llama3.1_8b_v6e-256", "configs/lm/llama_8b.py", V6E,
            {**adam, "mesh": "fsdp=256", "data.batch_size": 1024, "eval.batch_size": 1024},
            published=(0.4546, 7207),
            source="MaxText, docs/reference/models/tiering.md; benchmarks/"
            "maxtext_trillium_model_configs.py llama3_1_8b_8192: 4 rows of 8192 tokens a chip,"
            " layer inputs and projections offloaded to the host",
        ),
        Case(
            "maxtext_32b_v5e-256", "configs/lm/llama_70b.py", V5E,
            {**adam, "mesh": "fsdp=256", "data.batch_size": 1024, "eval.batch_size": 1024,
             "data.seq_len": 2048, "model.context": 2048, "model.vocab_size": 32_000,
             "model.layers": 32, "model.kv_heads": 64, "train.accumulate": 2},
            published=(0.6686, 0.0),
            source="MaxText, README (runtime performance of v5e-256); src/maxtext/configs/tpu/v5e/"
            "32b.sh: 4 rows of 2048 tokens a chip, remat full, global_parameter_scale=32",
        ),
    ]  # fmt: skip


def run(case: Case) -> None:
    """Runs a plan, which writes its figures; one that does not fit is a result too."""
    os.makedirs(KEPT, exist_ok=True)
    path = os.path.join(KEPT, f"{case.name}.json")
    command = [sys.executable, "-m", "aigc_jax.main", *case.command(), f"--json={path}"]
    print(case.name, flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{case.name} failed: {' '.join(command)}")


def read(case: Case) -> dict[str, Any] | None:
    path = os.path.join(KEPT, f"{case.name}.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def row(case: Case, plan: dict[str, Any] | None) -> str:
    """A line of the page's table."""
    sold = SOLD[case.topology]
    name = case.name.removesuffix(f"_{sold}")
    if plan is None:
        return f"| {name} | {sold} | not planned yet | | | | | | |"
    c, m = plan["config"], plan["memory"]
    mesh = " ".join(f"{k}={n}" for k, n in plan["topology"]["mesh"].items())
    step = f"{c['batch_size']} rows" + (f" in {c['accumulate']}" if c["accumulate"] > 1 else "")
    if not m["fits"]:
        return (
            f"| {name} | {sold} | {mesh} | {step} | does not fit, by"
            f" {format_bytes(m['excess'])} | | | |"
        )
    r, rate, b = plan["roofline"], plan["rate"], plan["budget"]
    share = f"{format_bytes(m['peak'])} ({m['peak'] / m['capacity']:.0%})"
    times = f"{seconds(r['step'])}, {r['bound']}"
    speed = f"{rate['per_second_per_chip']:,.0f} {rate['unit']}/s"
    whole = f"{b['days']:,.1f} days, {b['chip_hours']:,.0f} h for {b['total']:.3g}"
    return (f"| {name} | {sold} | {mesh} | {step} | {share} | {times} | {speed} | {plan['mfu']:.0%}"
            f" | {whole} |")  # fmt: skip


def comparison(case: Case, plan: dict[str, Any] | None) -> str:
    """A line of the table beside published figures."""
    name, sold = case.name.removeprefix("maxtext_"), SOLD[case.topology]
    name = name.removesuffix(f"_{sold}")
    mfu, tokens = case.published or (0.0, 0.0)
    published = f"{mfu:.1%}" + (f", {tokens:,.0f} tokens/s" if tokens else "")
    if plan is None:
        return f"| {name} | {sold} | {published} | not planned yet | | |"
    if not plan["memory"]["fits"]:
        over = f"does not fit, by {format_bytes(plan['memory']['excess'])}"
        return f"| {name} | {sold} | {published} | {over} | | |"
    r, rate = plan["roofline"], plan["rate"]
    bound = f"{plan['mfu']:.1%}, {rate['per_second_per_chip']:,.0f} tokens/s"
    parts = ", ".join(f"{k} {seconds(r[k])}" for k in ("compute", "memory", "network"))
    again = plan["flops"]["computed"] / plan["flops"]["model"]
    return f"| {name} | {sold} | {published} | {bound} | {parts} | {again:.2f} |"


def write_page(found: list[Case]) -> None:
    """Writes docs/plans.md from the stored figures."""
    with open(os.path.join(HERE, "plans_page.md"), encoding="utf-8") as f:
        page = f.read()
    ours = [case for case in found if case.published is None]
    theirs = [case for case in found if case.published is not None]
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("jax", "libtpu"))
    fields = {
        "VERSIONS": versions,
        "PLANS": "\n".join(row(case, read(case)) for case in ours),
        "PUBLISHED": "\n".join(comparison(case, read(case)) for case in theirs),
        "SOURCES": "\n".join(f"- {case.name}: {case.source}." for case in theirs),
        "COMMANDS": "\n".join(f"    aigc {' '.join(case.command())}" for case in found),
    }
    for name, text in fields.items():
        page = page.replace(f"{{{name}}}", text)
    write_text_atomically(PAGE, page)
    print(f"written: {PAGE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=None, help="prefixes of names, separated by commas")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    found = cases()
    chosen = [c for c in found if arguments.only is None
              or c.name.startswith(tuple(arguments.only.split(",")))]  # fmt: skip
    for case in () if arguments.page else chosen:
        run(case)
    write_page(found)


if __name__ == "__main__":
    main()
