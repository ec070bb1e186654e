"""Memory and time of the order of examples, by their number: docs/scale.md.

    python benchmarks/data_index.py
    python benchmarks/data_index.py --write=docs/scale.md

Examples and documents are generated on access, and files only have names and lengths: measured are
the order, the split, the mixture and the row streams of this process, with batches
of 256 at the start, in the middle of the first epoch and in the second one.
"""

import gc
import tracemalloc
from typing import Any

import numpy as np
from absl import app, flags

from aigc_jax.core.config import Data
from aigc_jax.core.files import most_memory
from aigc_jax.data.loader import DataLoader
from aigc_jax.data.mixture import MixedSource
from aigc_jax.data.raw_dataset import LazyExamples
from aigc_jax.data.split import file_ends, hold_out
from aigc_jax.modalities.image.image_dataset import ImageSource
from aigc_jax.modalities.text.streaming import BestFitPack, StreamingSource
from aigc_jax.tools.bench.marked_block import replace_between

COUNTS = (10**3, 10**6, 10**9)
BATCH, FILE = 256, 100_000  # examples of a batch, and of a file
BEGIN, END = "<!-- data index -->", "<!-- end of data index -->"
WRITE = flags.DEFINE_string("write", "", "A Markdown file whose table to replace.")


def images(count: int) -> ImageSource:
    """A data set of `count` images in files of 100,000, of which a tenth is held out."""
    ends = np.append(np.arange(FILE, count, FILE), count)
    config = Data(source="synthetic", validation_fraction=0.1)
    examples = LazyExamples(lambda i: {"image": np.full((1, 1, 1), i % 256, np.uint8)}, count, ends)
    train, _ = hold_out(count, config, "images")
    return ImageSource(
        lambda i: (examples[i]()["image"], None),
        train,
        file_ends(ends, train, config),
        config.shuffle_window,
    )


def documents(count: int) -> StreamingSource:
    return StreamingSource(
        lambda i: (np.full(50 + i % 400, i % 251, np.int32), None), count, 512, BestFitPack
    )


KINDS = {
    "examples by index": images,
    "a mixture of two": lambda count: MixedSource([images(count), images(count)], [7, 3]),
    "documents packed from a stream": documents,
}


def measure(kind: str, count: int) -> tuple[int, int]:
    """Bytes that are kept, and the most there were at once."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    source = KINDS[kind](count)
    iterator = DataLoader(source, BATCH, seed=0, threads=0)
    by_number = "streams" not in iterator.position()
    for start in (0, count // (2 * BATCH), count // BATCH + 1) if by_number else (0,):
        iterator.skip_to(start)
        iterator.next()
    gc.collect()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept - before, peak - before


def table() -> list[str]:
    lines = [
        "| | " + " | ".join(f"10^{round(np.log10(count))}" for count in COUNTS) + " |",
        "|---|" + "---:|" * len(COUNTS),
    ]
    for kind in KINDS:
        found: list[Any] = [measure(kind, count) for count in COUNTS]
        for what, values in (
            ("kept", [f"{kept / 1e6:.2f} MB" for kept, _ in found]),
            ("at most", [f"{peak / 1e6:.2f} MB" for _, peak in found]),
        ):
            lines.append(f"| {kind}: {what} | " + " | ".join(values) + " |")
    return lines


def main(_: Any) -> None:
    measure("examples by index", 1000)  # what is loaded once is not the index's
    lines = table()
    print("\n".join(lines))
    most = most_memory() / 1e6
    print(f"\nThis process, with JAX, never had more than {most:.0f} MB.")
    if WRITE.value:
        replace_between(WRITE.value, BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    app.run(main)
