"""How fast the devices of a group reach each other: links of a torus, NVLink, or a slow network."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from aigc_jax.tools.chips import DataSheet
from aigc_jax.tools.plan.costs import Collective


def closed_sides(sheet: DataSheet, sides: Sequence[int]) -> tuple[bool, ...]:
    """Which sides of a slice are rings.

    Of a torus of three dimensions the switches close whole cubes of chips: all sides or none
    (cloud.google.com/tpu/docs/v5p: "4x4x4 and larger"). Of two dimensions each side is by itself.

    Args:
      sheet: of a chip.
      sides: chips along each side; a side that is left out has one.
    """
    whole = [n % sheet.ring == 0 for n in sides]
    if sheet.dimensions == 3:
        return (len(sides) == 3 and all(whole),) * len(sides)
    return tuple(whole)


@dataclasses.dataclass(frozen=True)
class Network:
    """The devices of a mesh as they are wired.

    Attributes:
      sheet: of each chip.
      places: of each device, (devices, dimensions): where it stands in its slice.
      slices: of each device, the number of its slice (or of its host, for GPUs).
      shared: devices that share a chip and its links.
    """

    sheet: DataSheet
    places: np.ndarray
    slices: np.ndarray
    shared: int = 1

    @classmethod
    def of(cls, devices: Sequence[Any], sheet: DataSheet) -> "Network":
        places = np.array([list(getattr(d, "coords", None) or [d.id]) for d in devices])
        across = "slice_index" if hasattr(devices[0], "coords") else "process_index"
        slices = np.array([getattr(d, across, 0) or 0 for d in devices])
        shared = len(devices) // len(
            {(s, *p) for s, p in zip(slices, places.tolist(), strict=True)}
        )
        return cls(sheet, places, slices, max(shared, 1))

    def bandwidth(self, group: Sequence[int]) -> float:
        """Bytes/s that a device sends and receives in a ring of collectives over a group.

        Along each side of the torus that the group spans, both ways if the side is closed, one way
        if not: then the device at the end has one link to all others. 0: not known.
        """
        at = np.asarray(group, int)
        if len(set(self.slices[at])) > 1:
            return self.sheet.slow / self.shared
        if not self.sheet.dimensions:
            return self.sheet.link
        total, sides = 0.0, (self.places.max(0) + 1).tolist()
        rings = closed_sides(self.sheet, sides)
        for d in range(self.places.shape[1]):
            spanned = len(set(self.places[at, d]))
            if spanned > 1:
                closed = spanned == sides[d] and rings[d]
                total += self.sheet.link * (2 if closed else 1)
        return (total or 2 * self.sheet.link) / self.shared

    def seconds(self, collective: Collective) -> float:
        """The least time that all of them take, if nothing else is on the links; 0: not known."""
        n, size = len(collective.group), collective.bytes
        speed = self.bandwidth(collective.group)
        if not speed:
            return 0.0
        if collective.kind == "collective-permute":
            return size / (self.sheet.link or speed)
        if collective.kind.endswith("all-to-all"):  # half of it goes a quarter of the way round
            return size * n / 4 / speed if self.sheet.dimensions else size / speed
        rounds = 2 if collective.kind == "all-reduce" else 1
        return rounds * size * (n - 1) / n / speed
