"""Both sides of a case, and checks that they do one thing."""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.timing import Work


@dataclasses.dataclass(frozen=True)
class Sides:
    """Both sides of a case, which have been checked against each other and called once.

    Attributes:
      ours, theirs: do the work so many times.
      note: what they were found to have in common.
      per: how many tokens or images the work makes; 0: its time is what counts.
    """

    ours: Work
    theirs: Work
    note: str
    per: int = 0


def repeated(once: Callable[[], Any]) -> Work:
    """What is done when it returns, as work that can be done several times."""

    def work(times: int) -> None:
        for _ in range(times):
            once()

    return work


def size_of(*modules: Any) -> int:
    """The number of parameters of modules of PyTorch."""
    return sum(p.numel() for module in modules for p in module.parameters())


def check_count(ours: int, theirs: int) -> str:
    """Says how many parameters each has; ValueError if they differ."""
    if ours != theirs:
        raise ValueError(f"ours has {ours} parameters, theirs {theirs}")
    return f"{ours:,} parameters each"


def check_close(what: str, ours: Any, theirs: Any, tolerance: float) -> str:
    """Says how far apart two results are, as a share of the largest; ValueError if too far."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{what}: ours are of shape {ours.shape}, theirs of {theirs.shape}")
    apart = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not apart <= tolerance:
        raise ValueError(f"{what}: ours and theirs are {apart:.2g} of theirs apart")
    return f"{what} equal to {apart:.0e}"


def carried(model: Any, read: Callable[[str], Any]) -> Any:
    """What `read` makes of the folder that a model of transformers or diffusers saves itself to."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return read(folder)
