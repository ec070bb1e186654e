"""Entry point of `python -m benchmarks.peers`."""

import gc
import importlib.util
import os
import sys
import time

from absl import app, flags, logging

from benchmarks.peers.cases import CASES
from benchmarks.peers.others import Others
from benchmarks.peers.rows import disturbances, table

BEGIN, END = "<!-- peers -->", "<!-- end of peers -->"
PACKAGES = ("torch", "transformers", "diffusers")

FLAGS = flags.FLAGS
flags.DEFINE_list("cases", list(CASES), "Cases to measure.")
flags.DEFINE_integer("slots", 7, "Slots of each side.", lower_bound=1)
flags.DEFINE_string("page", "", "Markdown page whose table to replace; empty: only print.")
flags.register_validator("cases", lambda names: all(name in CASES for name in names),
                         f"the cases are {', '.join(CASES)}")  # fmt: skip


def write_page(page: str, text: str) -> None:
    """Replaces the table and its provenance between the marks of the page."""
    from aigc_jax.tools.bench.marked_block import provenance, replace_between

    given = [f"--{name}={FLAGS[name].value}" for name in ("slots", "page") if FLAGS[name].present]
    if FLAGS["cases"].present:
        given.insert(0, f"--cases={','.join(FLAGS.cases)}")
    command = " ".join(["python -m benchmarks.peers", *given])
    replace_between(page, BEGIN, END, f"{provenance(PACKAGES, command)}\n\n{text}")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)  # JAX logs missing devices
    lacking = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if lacking:
        sys.exit(f"{' and '.join(lacking)} must be installed: pip install 'aigc-jax[peers]'")
    import torch

    torch.set_num_threads(os.cpu_count() or 1)  # as XLA
    rows, others = [], Others()
    for name in FLAGS.cases:
        began = time.perf_counter()
        found = CASES[name](FLAGS.slots, lambda note, name=name: print(f"{name}: {note}"))
        for row in found:
            print(f"{name}: {row.verdict()}", flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        rows += found
        gc.collect()
    text = "\n\n".join(filter(None, (table(rows), disturbances(rows, others.share()))))
    print(text)
    if FLAGS.page:
        write_page(FLAGS.page, text)


if __name__ == "__main__":
    app.run(main)
