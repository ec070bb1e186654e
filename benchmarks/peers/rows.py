"""The table of what was measured, and which figures there were to reach."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax.tools.bench.timing import Times
from benchmarks.peers.others import BUSY
from benchmarks.peers.timing import ratio

COLUMNS = ("work", "beside", "PyTorch", "ours", "ours / PyTorch (95%)")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      work: what both sides did.
      peer: whose model the other one is.
      ours, theirs: seconds for the work once, slot by slot; or bytes.
      target: the ratio to reach; for the terminal.
      per: tokens or images that the work makes, whose rate is shown; 0: its time is.
      unit: of these; "bytes": there is memory instead of seconds.
      disturbed: slots of all that were so to the last try.
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
    ) -> "Row":
        """What `interleaved` found of the sides "ours" and "theirs"."""
        (ours, _), (theirs, _) = found["ours"], found["theirs"]
        disturbed = ours.disturbed + theirs.disturbed
        seconds = ours.seconds, theirs.seconds
        return cls(work, peer, *seconds, target, disturbed=disturbed, **more)

    def cells(self) -> list[str]:
        middle, low, high = ratio(self.ours, self.theirs)
        sides = [self.shown(statistics.median(side)) for side in (self.theirs, self.ours)]
        return [self.work, self.peer, *sides, f"**{middle:.2f}** ({low:.2f}–{high:.2f})"]

    def shown(self, value: float) -> str:
        """A median with its unit, in three figures."""
        if self.unit == "bytes":
            return f"{three(value / 1e9)} GB"
        if self.per:
            return f"{three(self.per / value)} {self.unit}/s"
        return f"{three(value)} s" if value >= 0.5 else f"{three(1e3 * value)} ms"

    def verdict(self) -> str:
        """For the terminal: what is in the table, and beside it what was to be reached."""
        middle = ratio(self.ours, self.theirs)[0]
        slots = f"{self.disturbed} of {2 * len(self.ours)} slots disturbed"
        reached = "reached" if middle <= self.target else "NOT reached"
        return f"{' | '.join(self.cells())} | to reach {self.target}: {reached}; {slots}"


def disturbances(rows: Sequence[Row], others: float) -> str:
    """What else the machine did meanwhile; "" if nothing.

    Args:
      rows: what was measured.
      others: the share of all cores that other processes had.
    """
    bad, slots = sum(row.disturbed for row in rows), sum(2 * len(row.ours) for row in rows)
    said = [f"The machine was not idle: other processes had {others:.0%} of its cores."]
    said = said if others > BUSY else []
    said += [f"{bad} of {slots} slots were disturbed at every try."] if bad else []
    return " ".join(said)


def three(value: float) -> str:
    """Three figures, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("| --- ", "|---") for line in lines)
