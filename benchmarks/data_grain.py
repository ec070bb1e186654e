"""Our order, mixture and packing compared with Grain's, for docs/scale.md.

    python benchmarks/data_grain.py
    python benchmarks/data_grain.py --write=docs/scale.md

Shuffling and mixing look up the examples of batches of 256; packing makes rows of 512 tokens of
documents of 50 to 449. Nothing is read or tokenized, so that only the pipeline's own work counts.
"Same batches" compares batches of 1 process with those of 4, each reading its own rows.
"""

import gc
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import app, flags

from aigc_jax.data.mixture import MixtureSchedule
from aigc_jax.data.shuffle import EpochShuffle, WindowShuffle
from aigc_jax.modalities.text.streaming import BestFitPack, ConcatThenSplit, StreamingSource
from aigc_jax.tools.bench.marked_block import replace_between

COUNT, BATCH, BATCHES = 10**6, 256, 40  # examples of a source, of a batch; batches that are timed
ROWS, LENGTH, DOCUMENTS = 32, 512, 10**6  # rows of a batch of text, tokens of a row, documents
FILE, WINDOW = 10_000, 100_000  # examples of a file, and of a shuffle window
BEGIN, END = "<!-- data grain -->", "<!-- end of data grain -->"
WRITE = flags.DEFINE_string("write", "", "A Markdown file whose table to replace.")

# (process, processes) → an endless iterator of this process's rows of each batch.
Pipeline = Callable[[int, int], Iterator[np.ndarray]]


def rows_of(process: int, processes: int, size: int) -> np.ndarray:
    """The rows of a batch of `size` that a process reads."""
    local = size // processes
    return process * local + np.arange(local)


def own_shuffle(process: int, processes: int) -> Iterator[np.ndarray]:
    order, row_R = EpochShuffle(COUNT, 0), rows_of(process, processes, BATCH)
    return (order(number * BATCH + row_R) for number in itertools.count())


def grain_shuffle(process: int, processes: int) -> Iterator[np.ndarray]:
    data = grain.MapDataset.range(COUNT).shuffle(seed=0).repeat()
    row_R = rows_of(process, processes, BATCH).tolist()
    return (np.array([data[n * BATCH + r] for r in row_R]) for n in itertools.count())


def own_windows(process: int, processes: int) -> Iterator[np.ndarray]:
    ends, row_R = np.arange(FILE, COUNT + 1, FILE), rows_of(process, processes, BATCH)
    order = WindowShuffle(ends, [0], WINDOW)
    return (order[number * BATCH + row_R] for number in itertools.count())


def grain_windows(process: int, processes: int) -> Iterator[np.ndarray]:
    data = grain.experimental.WindowShuffleMapDataset(
        grain.MapDataset.range(COUNT), window_size=WINDOW, seed=0
    )
    row_R = rows_of(process, processes, BATCH).tolist()
    return (np.array([data[n * BATCH + r] for r in row_R]) for n in itertools.count())


def own_mixture(process: int, processes: int) -> Iterator[np.ndarray]:
    schedule, row_R = MixtureSchedule([7, 3], BATCH, 0), rows_of(process, processes, BATCH)
    orders = [EpochShuffle(COUNT, seed) for seed in (0, 1)]

    def batch(number: int) -> np.ndarray:
        part_R, place_R = schedule.batch(number, row_R)
        found_R = np.empty_like(place_R)
        for part, order in enumerate(orders):
            found_R[part_R == part] = order(place_R[part_R == part]) + part * COUNT
        return found_R

    return map(batch, itertools.count())


def grain_mixture(process: int, processes: int) -> Iterator[np.ndarray]:
    parts = [
        grain.MapDataset.range(i * COUNT, (i + 1) * COUNT).shuffle(seed=i).repeat()
        for i in range(2)
    ]
    data = grain.MapDataset.mix(parts, weights=[0.7, 0.3])
    row_R = rows_of(process, processes, BATCH).tolist()
    return (np.array([data[n * BATCH + r] for r in row_R]) for n in itertools.count())


def document(number: int) -> np.ndarray:
    return np.full(50 + number * 7919 % 400, number % 251 + 1, np.int32)


def own_packing(kind: Any) -> Pipeline:
    def pipeline(process: int, processes: int) -> Iterator[np.ndarray]:
        source = StreamingSource(lambda i: (document(i), None), DOCUMENTS, LENGTH - 1, kind)
        streams = source.row_streams(0, rows_of(process, processes, ROWS), ROWS)
        local = ROWS // processes

        def batch(number: int) -> np.ndarray:
            return np.stack([streams.row(r)[0]["tokens"] for r in range(local)])

        pipeline.state = streams.state  # type: ignore[attr-defined]
        return map(batch, itertools.count())

    return pipeline


def grain_packing(make: Callable[[grain.IterDataset], grain.IterDataset]) -> Pipeline:
    def pipeline(process: int, processes: int) -> Iterator[np.ndarray]:
        data = grain.MapDataset.range(DOCUMENTS).shuffle(seed=0)[process::processes]
        rows = iter(make(data.map(lambda i: {"tokens": document(i)}).to_iter_dataset()))
        local = ROWS // processes

        def batch(number: int) -> np.ndarray:
            return np.stack([next(rows)["tokens"] for _ in range(local)])

        pipeline.state = rows.get_state  # type: ignore[attr-defined]
        return map(batch, itertools.count())

    return pipeline


def best_fit(data: grain.IterDataset) -> grain.IterDataset:
    return grain.experimental.BestFitPackIterDataset(
        data, length_struct={"tokens": LENGTH}, num_packing_bins=ROWS, shuffle_bins=False
    )


def first_fit(data: grain.IterDataset) -> grain.IterDataset:
    return grain.experimental.FirstFitPackIterDataset(
        data, length_struct={"tokens": LENGTH}, num_packing_bins=ROWS, shuffle_bins=False
    )


def concatenated(data: grain.IterDataset) -> grain.IterDataset:
    return grain.experimental.ConcatThenSplitIterDataset(data, length_struct={"tokens": LENGTH})


PIPELINES: dict[str, tuple[Pipeline | None, Pipeline]] = {
    "shuffle": (own_shuffle, grain_shuffle),
    "shuffle in windows": (own_windows, grain_windows),
    "mix 7:3, shuffled": (own_mixture, grain_mixture),
    "concatenate and split": (own_packing(ConcatThenSplit), grain_packing(concatenated)),
    "pack, best fit": (own_packing(BestFitPack), grain_packing(best_fit)),
    "pack, first fit": (None, grain_packing(first_fit)),
}


PACKING = ("concatenate and split", "pack, best fit", "pack, first fit")


def speed(pipeline: Pipeline) -> float:
    """Rows per second of one process: the best of three tries."""
    found = []
    for _ in range(3):
        batches = pipeline(0, 1)
        next(batches)
        start, rows = time.perf_counter(), 0
        for batch in itertools.islice(batches, BATCHES):
            rows += len(batch)
        found.append(rows / (time.perf_counter() - start))
    return max(found)


def memory(pipeline: Pipeline) -> float:
    """The most MB at once while batches are made."""
    gc.collect()
    tracemalloc.start()
    list(itertools.islice(pipeline(0, 1), 4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 1e6


def same_batches(pipeline: Pipeline) -> bool:
    """True if 4 processes yield the rows of one process, in the same order."""
    alone = list(itertools.islice(pipeline(0, 1), 4))
    parts = [list(itertools.islice(pipeline(p, 4), 4)) for p in range(4)]
    together = [np.concatenate([part[k] for part in parts]) for k in range(4)]
    return all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def position(pipeline: Pipeline) -> str:
    """The size of what a checkpoint must hold after some batches."""
    list(itertools.islice(pipeline(0, 1), 4))
    state = getattr(pipeline, "state", None)
    if state is None:
        return "a number"
    value = state()
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return f"{len(json.dumps(value, default=lambda x: np.asarray(x).tolist()))} bytes"


def filled(pipeline: Pipeline) -> float:
    """The share of tokens that are not padding."""
    batches = list(itertools.islice(pipeline(0, 1), BATCHES))
    return float(np.mean([np.mean(batch > 0) for batch in batches]))


def table() -> list[str]:
    lines = [
        "| | whose | rows per second | peak memory | same batches | position | filled |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for name, pair in PIPELINES.items():
        for whose, pipeline in zip(("ours", "Grain's"), pair, strict=True):
            if pipeline is None:
                continue
            share = f"{filled(pipeline):.1%}" if name in PACKING else ""
            lines.append(
                f"| {name} | {whose} | {speed(pipeline):,.0f} | {memory(pipeline):.1f} MB |"
                f" {'yes' if same_batches(pipeline) else 'no'} | {position(pipeline)} | {share} |"
            )
    return lines


def main(_: Any) -> None:
    lines = table()
    print("\n".join(lines))
    if WRITE.value:
        replace_between(WRITE.value, BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    app.run(main)
