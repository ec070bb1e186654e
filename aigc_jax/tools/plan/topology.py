"""Devices to compile for, whether they are here or not, from a name such as `v5p:8x8x4`."""

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
from aigc_jax.tools.chips import DataSheet, data_sheet, shared, sheet_of_each
from aigc_jax.tools.plan.interconnect import closed_sides

# What libtpu looks up in a cloud's metadata, and would wait for, where there is no TPU.
ABSENT = {
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
OWN_NAMES = {"v5litepod": "v5e"}  # what libtpu calls them
CORES = ("v4", "v5p", "tpu7x")  # whose names, as v5p-512, count cores: two a chip
# Chips of the largest slice (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x).
MOST_CHIPS = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "tpu7x": 9216}
SIDES = re.compile(r"\d+(x\d+){1,2}")


def devices_of(name: str, slices: int = 1) -> list[Any]:
    """The devices of a topology.

    Args:
      name: "v5p:8x8x4" or "v5p-512" (TPUs, with the extra `plan`), "cpu:8" (this machine as so many
        devices) or "gpu:4" (of this machine).
      slices: of that form each, connected by a slow network; TPUs only.

    Raises:
      UserError: for a topology that does not exist or cannot be compiled for here.
    """
    kind, _, size = name.replace("-", ":", 1).partition(":")
    if kind in ("cpu", "gpu"):
        if slices > 1:
            raise UserError(f"--slices is for TPUs: leave it out for --topology={name}")
        return _local(kind, size, name)
    if kind not in KINDS:
        known = ", ".join(sorted({*KINDS, "cpu", "gpu"} - set(OWN_NAMES)))
        raise UserError(
            f"--topology={name} is of no known kind ({known}): write it as v5p:8x8x4, v5p-512 or"
            " cpu:8"
        )
    return _tpu(kind, size if "x" in size else sides_of(kind, size, name), name, slices)


def sides_of(kind: str, size: str, name: str = "") -> str:
    """The sides of the slice that Google sells under a number: "512" of v5p is "8x8x4".

    The number counts cores for the kinds of `CORES`, of which two make a chip, else chips.

    Raises:
      UserError: if there is none of that size.
    """
    flat = data_sheet(KINDS[kind]).dimensions == 2
    wrong = UserError(f"--topology={name} is not a size of {kind}: give its sides, as in {kind}:"
                      f"{'4x8' if flat else '4x4x8'}")  # fmt: skip
    if not size.isdigit() or int(size) < 1:
        raise wrong
    chips = int(size) // (2 if kind in CORES else 1)
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


def _tpu(kind: str, sides: str, name: str, slices: int) -> list[Any]:
    if not SIDES.fullmatch(sides):
        raise UserError(f"--topology={name}: write the sides as in v5e:16x16 or v5p:8x8x4")
    sheet = data_sheet(KINDS[kind])
    lengths = [int(n) for n in sides.split("x")]
    _check_exists(OWN_NAMES.get(kind, kind), lengths, sheet, name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for TPUs needs their compiler: pip install 'aigc-jax[plan]' (no TPU is"
            " needed)"
        )
    for key, value in ABSENT.items():
        os.environ.setdefault(key, value)
    on_host()
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
            platform="tpu", topology_name=f"{OWN_NAMES.get(kind, kind)}:{sides}", **options
        )
    except Exception as e:
        raise UserError(f"--topology={name} cannot be had ({one_line(e)}): try other sides") from e
    return list(found.devices)


def _check_exists(kind: str, sides: Sequence[int], sheet: DataSheet, name: str) -> None:
    """Refuses what libtpu would compile for, though nobody has built it."""
    if len(sides) > sheet.dimensions:
        raise UserError(
            f"--topology={name} has {len(sides)} sides, but slices of {kind} are flat: give two, as"
            f" in {kind}:4x8"
        )
    # A side of a flat slice is at most a whole pod's, which is what closes to a ring.
    beyond = sheet.dimensions == 2 and max(sides) > sheet.ring
    if beyond or math.prod(sides) > MOST_CHIPS[kind]:
        shape = f"{sheet.ring}x{sheet.ring}, " if sheet.dimensions == 2 else ""
        raise UserError(
            f"--topology={name} is larger than any slice of {kind} ({shape}{MOST_CHIPS[kind]}"
            " chips): take several smaller ones with --slices"
        )


def _local(kind: str, size: str, name: str) -> list[Any]:
    """Devices of this machine."""
    if not size.isdigit() or int(size) < 1:
        raise UserError(f"--topology={name}: write the number of devices, as in {kind}:8")
    count = int(size)
    if kind == "cpu":
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", count)
    try:
        found = list(jax.devices(kind))
    except RuntimeError as e:
        raise UserError(
            f"--topology={name} needs a {kind.upper()}, which JAX does not see here: GPUs can be"
            " planned for only where there is one; TPUs and cpu:N anywhere"
        ) from e
    if len(found) < count:
        raise UserError(
            f"--topology={name} asks for {count} devices, but JAX sees {len(found)} here"
        )
    return found[:count]


def on_host() -> None:
    """JAX itself stays on the CPU, if it has not started: an accelerator may be another's."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")


def sheet_of(devices: Sequence[Any]) -> tuple[DataSheet, str]:
    """The data sheet of a device, and where it comes from: "data sheet" or "measured".

    Where several devices are one chip, each has its share of it.

    Raises:
      UserError: for an accelerator that is not in the table.
    """
    device = devices[0]
    sheet = sheet_of_each(devices)
    if sheet is not None:
        return sheet, "data sheet"
    if device.platform != "cpu":
        raise UserError(
            f"the data sheet of {device.device_kind} is not known: add it to"
            " aigc_jax/tools/chips.py"
        )
    return shared(measured(), len(devices)), "measured"


def measured() -> DataSheet:
    """This machine's processor, as a matrix product and a large array find it."""
    import jax.numpy as jnp

    from aigc_jax.core.files import physical_memory
    from aigc_jax.tools.bench.hardware import bandwidth_ceiling, matmul_ceiling

    return DataSheet(matmul_ceiling(jnp.float32), bandwidth_ceiling(), physical_memory())


def chips_of(devices: Sequence[Any]) -> int:
    """How many chips the devices are; a CPU's are one."""
    if devices[0].platform == "cpu":
        return 1
    if hasattr(devices[0], "coords"):
        return len({(getattr(d, "slice_index", 0), *d.coords) for d in devices})
    return len(devices)


@contextlib.contextmanager
def tracing_for(devices: Sequence[Any]) -> Iterator[None]:
    """Inside, models are traced in the forms that win on these devices."""
    with compiling_for(devices[0].platform):
        yield
