"""The cases: work of both sides, slots, and the target ratio.

A case imports its libraries when it is measured.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from aigc_jax.tools.bench.timing import interleaved
from benchmarks.peers import work
from benchmarks.peers.rows import ComparisonRow
from benchmarks.peers.sides import Sides
from benchmarks.peers.timing import Slot, probe

Log = Callable[[str], None]
Case = Callable[[int, Log], list[ComparisonRow]]  # (slots of each side, log) → rows


@dataclasses.dataclass(frozen=True)
class Compared:
    """A case with one row.

    Attributes:
      work: description of the work.
      peer: model or library of the other side.
      make: builds both sides.
      target: ratio to reach.
      unit: of `Sides.per`.
      seconds: of a slot; 0: one repetition of long work.
      most: maximum number of slots of each side.
    """

    work: str
    peer: str
    make: Callable[[], Sides]
    target: float
    unit: str = ""
    seconds: float = 1.0
    most: int = 1000

    def __call__(self, slots: int, log: Log) -> list[ComparisonRow]:
        sides = self.make()
        log(sides.note)
        works = dict(ours=Slot(sides.ours, self.seconds), theirs=Slot(sides.theirs, self.seconds))
        found = interleaved(works, min(slots, self.most), probe)
        return [
            ComparisonRow.of(
                self.work, self.peer, found, self.target, per=sides.per, unit=self.unit
            )
        ]


def from_(module: str, function: str, *arguments: Any) -> Callable[[], Sides]:
    """A call of a function of this package that imports its module only when it is made."""

    def make() -> Sides:
        return getattr(importlib.import_module(f"benchmarks.peers.{module}"), function)(*arguments)

    return make


def _starts(name: str, words: str, peer: str, warm: float, cold: float) -> Case:
    """A case with three rows: start with a warm and with a cold cache, and peak memory.

    Args:
      name: of the work, "lm" or "unet".
      words: description of the work.
      peer: model or library of the other side.
      warm, cold: ratios to reach.
    """

    def measure(slots: int, log: Log) -> list[ComparisonRow]:
        from benchmarks.peers.processes import starts

        with starts(name) as processes:
            found = interleaved(processes, min(slots, 3), probe)
        start = f"process start to first step, {words}"
        for kind, process in processes.items():
            log(f"{kind}: {max(process.bytes) / 1e9:.2f} GB")
        last = min(slots, 3)  # those with a warm cache
        ours, theirs = (processes[kind].bytes[-last:] for kind in ("ours", "theirs"))
        return [
            ComparisonRow.of(f"{start}, warm cache", peer, found, warm),
            ComparisonRow.of(f"{start}, cold cache", peer, {**found, "ours": found["cold"]}, cold),
            ComparisonRow(
                f"peak memory of training, {words}", peer, ours, theirs, 1.0, unit="bytes"
            ),
        ]

    return measure


GPT2, UNET = "GPT-2 of transformers", "UNet2DModel of diffusers"
WRITE = "`generate` of transformers, with cache"
CASES: dict[str, Case] = {
    "lm_small": Compared(
        "train step, LM, 4 layers of 128, context 64, batch 12",
        GPT2,
        from_("lm", "training", work.NANOGPT),
        1.0,
    ),
    "lm": Compared(
        "train step, LM, 6 layers of 384, context 256, batch 8",
        GPT2,
        from_("lm", "training", work.MEDIUM),
        1.0,
    ),
    "unet": Compared(
        "train step, U-Net of 6.5 M parameters, 32×32×3, batch 32",
        UNET,
        from_("unet", "training"),
        1.0,
    ),
    "ddim": Compared(
        "DDIM, 50 steps, batch 16, the same U-Net",
        "DDIMPipeline of diffusers",
        from_("unet", "sampling"),
        0.8,
        seconds=0.0,
        most=4,
    ),
    "gan": Compared(
        "train step, DCGAN 28×28, batch 64",
        "PyTorch, as its example: 5×5, batch norm",
        from_("gan", "training", True),
        0.9,
    ),
    "gan_same": Compared(
        "train step, DCGAN 28×28, batch 64",
        "PyTorch, the same function as ours",
        from_("gan", "training", False),
        0.9,
    ),
    "vae": Compared(
        "train step, VAE 784-400-20, batch 128", "PyTorch's example", from_("vae", "training"), 0.45
    ),
    "write_1": Compared(
        "128 tokens, LM, 4 layers of 128, batch 1",
        WRITE,
        from_("generation", "generation", work.WRITER, 1, 128),
        0.08,
        "tokens",
    ),
    "write_8": Compared(
        "128 tokens, LM, 4 layers of 128, batch 8",
        WRITE,
        from_("generation", "generation", work.WRITER, 8, 128),
        0.15,
        "tokens",
    ),
    "gpt2_1": Compared(
        "64 tokens, GPT-2 124M, batch 1",
        WRITE,
        from_("generation", "generation", work.GPT2, 1, 64),
        0.5,
        "tokens",
        0.0,
        5,
    ),
    "gpt2_8": Compared(
        "64 tokens, GPT-2 124M, batch 8",
        WRITE,
        from_("generation", "generation", work.GPT2, 8, 64),
        0.35,
        "tokens",
        0.0,
        5,
    ),
    "start_lm": _starts("lm", "LM of 6 layers of 384", GPT2, 0.65, 1.4),
    "start_unet": _starts("unet", "U-Net", UNET, 0.9, 2.0),
}
