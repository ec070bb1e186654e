"""Both sides of a case, and checks that they do the same work."""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.timing import Work


@dataclasses.dataclass(frozen=True)
class Sides:
    """Both sides of a case, checked against each other and compiled.

    Attributes:
      ours, theirs: repeat the work.
      note: result of the checks.
      per: tokens or images per repetition; 0: only the time counts.
    """

    ours: Work
    theirs: Work
    note: str
    per: int = 0


def repeated(once: Callable[[], Any]) -> Work:
    """Turns a blocking function into work."""

    def work(times: int) -> None:
        for _ in range(times):
            once()

    return work


def size_of(*modules: Any) -> int:
    """Number of parameters of PyTorch modules."""
    return sum(p.numel() for module in modules for p in module.parameters())


def check_count(ours: int, theirs: int) -> str:
    """Formats the number of parameters; ValueError if it differs between the sides."""
    if ours != theirs:
        raise ValueError(f"ours has {ours} parameters, theirs {theirs}")
    return f"{ours:,} parameters each"


def check_close(what: str, ours: Any, theirs: Any, tolerance: float) -> str:
    """Formats the largest difference, relative to the largest value; ValueError if too large."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{what}: ours are of shape {ours.shape}, theirs of {theirs.shape}")
    apart = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not apart <= tolerance:
        raise ValueError(f"{what}: ours and theirs are {apart:.2g} of theirs apart")
    return f"{what} equal to {apart:.0e}"


def carried(model: Any, read: Callable[[str], Any]) -> Any:
    """Saves a model of transformers or diffusers to a folder; returns `read` of it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return read(folder)
