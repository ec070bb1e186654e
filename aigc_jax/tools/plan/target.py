"""Devices to plan for, with their data sheet."""

import dataclasses
from collections.abc import Sequence

import jax

from aigc_jax.tools.chips import DataSheet
from aigc_jax.tools.plan import topology


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
      name: of the topology.
      devices: its devices.
      sheet: data sheet of a device.
      source: of the sheet: "data sheet" or "measured".
      chips: number of chips, which are what is paid for.
    """

    name: str
    devices: Sequence[jax.Device]
    sheet: DataSheet
    source: str
    chips: int

    @classmethod
    def of(cls, name: str, slices: int = 1) -> "Target":
        """The devices of a topology.

        Args:
          name: as `topology.topology_devices` takes it.
          slices: number of slices of this topology.

        Raises:
          UserError: for a topology that cannot be compiled for here.
        """
        devices = topology.topology_devices(name, slices)
        sheet, source = topology.device_sheet(devices)
        label = name if slices == 1 else f"{slices} × {name}"
        return cls(label, devices, sheet, source, topology.num_chips(devices))
