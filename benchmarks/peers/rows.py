"""The table of results, and their targets."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax.tools.bench.timing import Times
from benchmarks.peers.others import BUSY
from benchmarks.peers.timing import ratio

COLUMNS = ("work", "beside", "PyTorch", "ours", "ours / PyTorch (95%)")


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """One line of the table.

    Attributes:
      work: description of the work.
      peer: model or library of the other side.
      ours, theirs: seconds of one repetition in each slot; or bytes.
      target: ratio to reach; for the terminal.
      per: tokens or images per repetition, to show a rate; 0: show the time.
      unit: of `per`; "bytes": the values are memory.
      disturbed: number of slots that were disturbed in every try.
    """

    work: str
    peer: str
    ours: Sequence[float]
    theirs: Sequence[float]
    target: float
    per: int = 0
    unit: str = ""
    disturbed: int = 0

    @classmethod
    def of(
        cls,
        work: str,
        peer: str,
        found: Mapping[str, tuple[Times, Times]],
        target: float,
        **more: Any,
    ) -> "ComparisonRow":
        """A row of the times that `interleaved` returns for the sides "ours" and "theirs"."""
        (ours, _), (theirs, _) = found["ours"], found["theirs"]
        disturbed = ours.disturbed + theirs.disturbed
        seconds = ours.seconds, theirs.seconds
        return cls(work, peer, *seconds, target, disturbed=disturbed, **more)

    def cells(self) -> list[str]:
        middle, low, high = ratio(self.ours, self.theirs)
        sides = [self.shown(statistics.median(side)) for side in (self.theirs, self.ours)]
        return [self.work, self.peer, *sides, f"**{middle:.2f}** ({low:.2f}–{high:.2f})"]

    def shown(self, value: float) -> str:
        """Formats a median with its unit, in three digits."""
        if self.unit == "bytes":
            return f"{three(value / 1e9)} GB"
        if self.per:
            return f"{three(self.per / value)} {self.unit}/s"
        return f"{three(value)} s" if value >= 0.5 else f"{three(1e3 * value)} ms"

    def verdict(self) -> str:
        """Formats the row for the terminal, with the target and the disturbed slots."""
        middle = ratio(self.ours, self.theirs)[0]
        slots = f"{self.disturbed} of {2 * len(self.ours)} slots disturbed"
        reached = "reached" if middle <= self.target else "NOT reached"
        return f"{' | '.join(self.cells())} | target {self.target}: {reached}; {slots}"


def disturbances(rows: Sequence[ComparisonRow], others: float) -> str:
    """Sentences about the load of other processes during the measurement; "" if none.

    Args:
      rows: of the table.
      others: share of all cores that other processes used.
    """
    bad, slots = sum(row.disturbed for row in rows), sum(2 * len(row.ours) for row in rows)
    said = [f"The machine was not idle: other processes had {others:.0%} of its cores."]
    said = said if others > BUSY else []
    said += [f"{bad} of {slots} slots were disturbed at every try."] if bad else []
    return " ".join(said)


def three(value: float) -> str:
    """Formats a number with three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def table(rows: Sequence[ComparisonRow]) -> str:
    """Formats the rows as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("| --- ", "|---") for line in lines)
