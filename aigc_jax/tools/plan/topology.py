"""Devices to compile for, attached or not, from a name such as `v5p:8x8x4`."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from aigc_jax.core.errors import UserError, one_line
from aigc_jax.ops.dispatch import compiling_for
from aigc_jax.tools.chips import (
    DataSheet,
    data_sheet,
    data_sheet_per_device,
    devices_per_chip,
    divide_sheet,
)
from aigc_jax.tools.plan.interconnect import closed_sides

# Values that libtpu would otherwise query from a cloud's metadata server, and wait for.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5litepod": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}
LIBTPU_NAMES = {"v5litepod": "v5e"}  # names in libtpu
COUNTED_IN_CORES = ("v4", "v5p", "tpu7x")  # names such as v5p-512 count cores, two per chip
# Chips of the largest slice (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x).
MAX_CHIPS = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "tpu7x": 9216}
SIDES = re.compile(r"\d+(x\d+){1,2}")


def topology_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a topology.

    Args:
      name: "v5p:8x8x4" or "v5p-512" (TPUs, with the extra `plan`), "cpu:8" (this machine as eight
        devices) or "gpu:4" (of this machine).
      slices: number of slices of this shape, connected by DCN; TPUs only.

    Raises:
      UserError: for a topology that does not exist or cannot be compiled for here.
    """
    kind, _, size = name.replace("-", ":", 1).partition(":")
    if kind in ("cpu", "gpu"):
        if slices > 1:
            raise UserError(f"--slices is for TPUs: leave it out for --topology={name}")
        return _local(kind, size, name)
    if kind not in KINDS:
        known = ", ".join(sorted({*KINDS, "cpu", "gpu"} - set(LIBTPU_NAMES)))
        raise UserError(
            f"--topology={name} has an unknown kind (known: {known}): write v5p:8x8x4, v5p-512 or"
            " cpu:8"
        )
    return _tpu(kind, size if "x" in size else slice_sides(kind, size, name), name, slices)


def _known_sheet(kind: str) -> DataSheet:
    """The data sheet of a kind of `KINDS`."""
    sheet = data_sheet(KINDS[kind])
    assert sheet is not None
    return sheet


def slice_sides(kind: str, size: str, name: str = "") -> str:
    """Sides of the slice that is sold under a number: "512" of v5p is "8x8x4".

    The number counts cores for the kinds of `CORES`, of which two make a chip, else chips.

    Raises:
      UserError: if there is none of that size.
    """
    flat = _known_sheet(kind).dimensions == 2
    wrong = UserError(f"--topology={name} is not a size of {kind}: give its sides, as in {kind}:"
                      f"{'4x8' if flat else '4x4x8'}")  # fmt: skip
    if not size.isdigit() or int(size) < 1:
        raise wrong
    chips = int(size) // (2 if kind in COUNTED_IN_CORES else 1)
    if flat:
        if chips > 256 or chips & (chips - 1) or chips == 2:
            raise wrong
        side = 1 << (chips.bit_length() - 1) // 2
        return f"{side}x{chips // side}"
    small = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"}
    if chips in small:
        return small[chips]
    if chips < 64 or chips % 64:
        raise wrong
    cubes = chips // 64
    best = min(
        (
            (c, b, a)
            for a in range(1, cubes + 1)
            for b in range(a, cubes + 1)
            if cubes % (a * b) == 0 and (c := cubes // (a * b)) >= b
        ),
        key=lambda sides: sides[0] - sides[2] + sides[0] - sides[1],
    )
    return "x".join(str(4 * n) for n in best)


def _tpu(kind: str, sides: str, name: str, slices: int) -> list[jax.Device]:
    if not SIDES.fullmatch(sides):
        raise UserError(f"--topology={name}: write the sides as in v5e:16x16 or v5p:8x8x4")
    sheet = _known_sheet(kind)
    lengths = [int(n) for n in sides.split("x")]
    _check_exists(LIBTPU_NAMES.get(kind, kind), lengths, sheet, name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for TPUs needs their compiler: pip install 'aigc-jax[plan]' (no TPU is"
            " needed)"
        )
    for key, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    use_cpu_backend()
    from jax.experimental import topologies

    options: dict[str, Any] = {"wrap": closed_sides(sheet, lengths) + (False,) * (3 - len(lengths))}
    if math.prod(lengths) == 1:  # a host of one chip, where others have four
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{LIBTPU_NAMES.get(kind, kind)}:{sides}", **options
        )
    except Exception as e:
        raise UserError(f"libtpu refuses --topology={name} ({one_line(e)}): use other sides") from e
    return list(found.devices)


def _check_exists(kind: str, sides: Sequence[int], sheet: DataSheet, name: str) -> None:
    """Refuses slices that do not exist, although libtpu would compile for them."""
    if len(sides) > sheet.dimensions:
        raise UserError(
            f"--topology={name} has {len(sides)} sides, but slices of {kind} have two: write"
            f" them as in {kind}:4x8"
        )
    # A side of a two-dimensional slice is at most that of a pod, which is a ring.
    beyond = sheet.dimensions == 2 and max(sides) > sheet.ring
    if beyond or math.prod(sides) > MAX_CHIPS[kind]:
        shape = f"{sheet.ring}x{sheet.ring}, " if sheet.dimensions == 2 else ""
        raise UserError(
            f"--topology={name} is larger than any slice of {kind} ({shape}{MAX_CHIPS[kind]}"
            " chips): use several smaller ones with --slices"
        )


def _local(kind: str, size: str, name: str) -> list[jax.Device]:
    """Returns devices of this machine."""
    if not size.isdigit() or int(size) < 1:
        raise UserError(f"--topology={name}: write the number of devices, as in {kind}:8")
    count = int(size)
    if kind == "cpu":
        with contextlib.suppress(RuntimeError):  # the backend is initialised
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", count)
    try:
        found = list(jax.devices(kind))
    except RuntimeError as e:
        raise UserError(
            f"--topology={name} needs a {kind.upper()}, but JAX finds none: plans for GPUs need an"
            " attached one, plans for TPUs and cpu:N do not"
        ) from e
    if len(found) < count:
        raise UserError(f"--topology={name} needs {count} devices, but JAX finds {len(found)}")
    return found[:count]


def use_cpu_backend() -> None:
    """Selects the CPU backend unless one is initialised: an accelerator may be in use."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")


def device_sheet(devices: Sequence[jax.Device]) -> tuple[DataSheet, str]:
    """The data sheet of a device and its source, "data sheet" or "measured".

    Where several devices are one chip, the sheet is a device's share of it.

    Raises:
      UserError: for an accelerator that is not in the table.
    """
    device = devices[0]
    sheet = data_sheet_per_device(devices)
    if sheet is not None:
        return sheet, "data sheet"
    if device.platform != "cpu":
        raise UserError(
            f"the data sheet of {device.device_kind} is not known: add it to"
            " aigc_jax/tools/chips.py"
        )
    return divide_sheet(measured_sheet(), len(devices)), "measured"


def measured_sheet() -> DataSheet:
    """Data sheet of this machine's processor, measured with a matrix product and a large array."""
    import jax.numpy as jnp

    from aigc_jax.core.files import physical_memory
    from aigc_jax.tools.bench.hardware import bandwidth_ceiling, matmul_ceiling

    return DataSheet(matmul_ceiling(jnp.float32), bandwidth_ceiling(), physical_memory())


def num_chips(devices: Sequence[jax.Device]) -> int:
    """Number of chips of the devices; 1 for a CPU."""
    if devices[0].platform == "cpu":
        return 1
    return len(devices) // devices_per_chip(devices)


@contextlib.contextmanager
def tracing_for(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Traces models in this block with the implementations for these devices."""
    with compiling_for(devices[0].platform):
        yield
