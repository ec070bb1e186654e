"""Data sheets of accelerators, and the attributes of JAX devices that depend on the platform.

TPUs: "How to Scale Your Model" (Austin et al. 2025, jax-ml.github.io/scaling-book), chapter "TPUs",
and Google's pages per generation (cloud.google.com/tpu/docs/v5p and its neighbours). A link has
the book's 45 or 90 GB/s; the pages' figures per chip and both ways, 400 GB/s of v5e and 1,200 GB/s
of v5p, would be 50 and 100. GPUs: NVIDIA's data sheets, dense bfloat16. Per chip; where a chip
is two devices, each has half of it.
"""

import dataclasses
from collections.abc import Sequence

import jax


@dataclasses.dataclass(frozen=True)
class DataSheet:
    """Data sheet of a chip.

    Attributes:
      flops: FLOP/s of dense bfloat16 matrix products.
      bandwidth: bytes/s of its memory.
      memory: bytes of its memory.
      link_bandwidth: bytes/s one way over one link to a neighbour; of a GPU, over all its NVLinks.
      dimensions: of the torus of links; 0: every device is connected to every other.
      ring: a side of the torus is a ring if its length is a multiple of this.
      dcn_bandwidth: bytes/s of a chip's share of the network between slices or hosts.
    """

    flops: float
    bandwidth: float
    memory: float = 0.0
    link_bandwidth: float = 0.0
    dimensions: int = 0
    ring: int = 0
    dcn_bandwidth: float = 0.0


GIB = float(1 << 30)

# By prefix of JAX's `device_kind`; the first match counts.
DATA_SHEETS = {
    "NVIDIA B200": DataSheet(2250e12, 8.0e12, 180 * GIB, 900e9, dcn_bandwidth=50e9),
    "NVIDIA GH200 144G": DataSheet(989e12, 4.9e12, 144 * GIB, 450e9, dcn_bandwidth=50e9),
    "NVIDIA GH200": DataSheet(989e12, 4.0e12, 96 * GIB, 450e9, dcn_bandwidth=50e9),
    "NVIDIA H200 NVL": DataSheet(835e12, 4.8e12, 141 * GIB, 450e9, dcn_bandwidth=25e9),
    "NVIDIA H200": DataSheet(989e12, 4.8e12, 141 * GIB, 450e9, dcn_bandwidth=50e9),
    "NVIDIA H100 PCIe": DataSheet(756e12, 2.0e12, 80 * GIB, 64e9, dcn_bandwidth=25e9),
    "NVIDIA H100 NVL": DataSheet(835e12, 3.9e12, 94 * GIB, 300e9, dcn_bandwidth=25e9),
    "NVIDIA H100": DataSheet(989e12, 3.35e12, 80 * GIB, 450e9, dcn_bandwidth=50e9),
    "NVIDIA A100-SXM4-80GB": DataSheet(312e12, 2.039e12, 80 * GIB, 300e9, dcn_bandwidth=25e9),
    "NVIDIA A100 80GB": DataSheet(312e12, 1.935e12, 80 * GIB, 32e9, dcn_bandwidth=25e9),
    "NVIDIA A100": DataSheet(312e12, 1.555e12, 40 * GIB, 300e9, dcn_bandwidth=25e9),
    "NVIDIA L40S": DataSheet(362e12, 0.864e12, 48 * GIB, 32e9, dcn_bandwidth=12.5e9),
    "NVIDIA L40": DataSheet(181e12, 0.864e12, 48 * GIB, 32e9, dcn_bandwidth=12.5e9),
    "NVIDIA L4": DataSheet(121e12, 0.3e12, 24 * GIB, 32e9, dcn_bandwidth=12.5e9),
    # Sides of whole cubes of 4×4×4 chips are closed by optical switches; of v5e and v6e only the
    # sides of a whole pod, 16.
    "TPU v4": DataSheet(275e12, 1.228e12, 32 * GIB, 45e9, 3, 4, 3.1e9),
    "TPU v5 lite": DataSheet(197e12, 0.819e12, 16 * GIB, 45e9, 2, 16, 3.1e9),
    "TPU v5e": DataSheet(197e12, 0.819e12, 16 * GIB, 45e9, 2, 16, 3.1e9),
    "TPU v5": DataSheet(459e12, 2.765e12, 95 * GIB, 90e9, 3, 4, 6.2e9),
    "TPU v6": DataSheet(918e12, 1.64e12, 32 * GIB, 90e9, 2, 16, 12.5e9),
    "TPU7x": DataSheet(2307e12, 7.38e12, 192 * GIB, 90e9, 3, 4, 12.5e9),
}


def data_sheet(kind: str) -> DataSheet | None:
    """The data sheet of a `device_kind`; None if it is unknown, or a MIG partition of a GPU."""
    if " MIG " in kind:
        return None
    return next((sheet for name, sheet in DATA_SHEETS.items() if kind.startswith(name)), None)


def data_sheet_per_device(devices: Sequence[jax.Device]) -> DataSheet | None:
    """The data sheet of one of these devices, its share where several are one chip.

    Args:
      devices: all of one kind.

    Returns:
      None if the kind is unknown.
    """
    sheet = data_sheet(devices[0].device_kind)
    return None if sheet is None else divide_sheet(sheet, devices_per_chip(devices))


def is_tpu(device: jax.Device) -> bool:
    """True if the device has a place in a torus: a TPU, attached or of a topology description."""
    return device.platform == "tpu"


def coordinates(device: jax.Device) -> tuple[int, ...]:
    """The place of a TPU's chip in the torus of its slice; of another device its number."""
    return tuple(device.coords) if is_tpu(device) else (device.id,)


def slice_index(device: jax.Device) -> int:
    """The number of the device's slice; of a GPU or CPU that of its host.

    Devices of one number are connected by fast links.
    """
    if not is_tpu(device):
        return device.process_index
    # A single slice, and topology descriptions of one, have no number.
    return getattr(device, "slice_index", 0) or 0


def devices_per_chip(devices: Sequence[jax.Device]) -> int:
    """Number of devices that share a chip and its links: two on TPUs with separate cores."""
    chips = {(slice_index(d), *coordinates(d)) for d in devices}
    return max(len(devices) // len(chips), 1)


def divide_sheet(sheet: DataSheet, parts: int) -> DataSheet:
    """The share of one of `parts` devices of a chip; `Interconnect` divides the links."""
    return dataclasses.replace(
        sheet,
        flops=sheet.flops / parts,
        bandwidth=sheet.bandwidth / parts,
        memory=sheet.memory / parts,
    )
