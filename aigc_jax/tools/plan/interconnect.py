"""Interconnect of the devices of a mesh: links of a torus, NVLink, data-centre network."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from aigc_jax.tools.chips import DataSheet, coordinates, devices_per_chip, slice_index
from aigc_jax.tools.plan.costs import Collective


def closed_sides(sheet: DataSheet, sides: Sequence[int]) -> tuple[bool, ...]:
    """For each side of a slice, whether it is a ring.

    In three dimensions optical switches close cubes of chips: all sides are rings or none is
    (cloud.google.com/tpu/docs/v5p: "4x4x4 and larger"). In two dimensions sides are independent.

    Args:
      sheet: of a chip.
      sides: chips along each side; omitted sides have one.
    """
    whole = [n % sheet.ring == 0 for n in sides]
    if sheet.dimensions == 3:
        return (len(sides) == 3 and all(whole),) * len(sides)
    return tuple(whole)


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """Interconnect of the devices of a mesh.

    Attributes:
      sheet: of each chip.
      coordinates: int (devices, dimensions), the place of each device in its slice.
      slices: int (devices,), the number of each device's slice; for GPUs of its host.
      shared: number of devices that share a chip and its links.
    """

    sheet: DataSheet
    coordinates: np.ndarray
    slices: np.ndarray
    shared: int = 1

    @classmethod
    def of(cls, devices: Sequence[jax.Device], sheet: DataSheet) -> "Interconnect":
        """The interconnect of these devices, all of one kind."""
        places = np.array([coordinates(d) for d in devices])
        slices = np.array([slice_index(d) for d in devices])
        return cls(sheet, places, slices, devices_per_chip(devices))

    def bandwidth(self, group: Sequence[int]) -> float:
        """Bytes/s that a device sends and receives in a ring collective over a group.

        Sums the links along each side of the torus that the group spans: two if it spans a ring,
        else one, because a device at an end has one link.

        Args:
          group: indices of the devices.

        Returns:
          0 if the bandwidth is not known.
        """
        at = np.asarray(group, int)
        if len(set(self.slices[at])) > 1:
            return self.sheet.dcn_bandwidth / self.shared
        if not self.sheet.dimensions:
            return self.sheet.link_bandwidth
        total, sides = 0.0, (self.coordinates.max(0) + 1).tolist()
        rings = closed_sides(self.sheet, sides)
        for d in range(self.coordinates.shape[1]):
            spanned = len(set(self.coordinates[at, d]))
            if spanned > 1:
                closed = spanned == sides[d] and rings[d]
                total += self.sheet.link_bandwidth * (2 if closed else 1)
        return (total or 2 * self.sheet.link_bandwidth) / self.shared

    def seconds(self, collective: Collective) -> float:
        """Lower bound of the seconds of collectives without other traffic; 0: not known."""
        n, size = len(collective.group), collective.bytes
        speed = self.bandwidth(collective.group)
        if not speed:
            return 0.0
        if collective.kind == "collective-permute":
            return size / (self.sheet.link_bandwidth or speed)
        if collective.kind.endswith("all-to-all"):  # half of the bytes travel a quarter of the ring
            return size * n / 4 / speed if self.sheet.dimensions else size / speed
        rounds = 2 if collective.kind == "all-reduce" else 1
        return rounds * size * (n - 1) / n / speed
