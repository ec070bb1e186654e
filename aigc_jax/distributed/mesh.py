"""The device mesh from its config string, and how batches lie on it.

A mesh has up to four named axes, the outermost first: `data` (whole copies of the state), `fsdp`
(copies that share out the state among themselves), `sequence` (each device has a part of every
text) and `tensor` (each device has a part of every layer). Rows of a batch are split over `data`
and `fsdp`; `rules.py` says what the others split.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import UserError, did_you_mean

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = ("data", "fsdp")  # the axes that split the rows of a batch


def parse_mesh(text: str, devices: int) -> dict[str, int]:
    """`"data=2,fsdp=-1"` as `{"data": 2, "fsdp": 4}`; −1 stands for all devices that are left.

    The axes come in the order of `AXES`, in whatever order they are written: the outer ones may lie
    across a slow network, the inner ones talk most.

    Raises:
      UserError: for an unknown axis or sizes that do not make up the devices.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise UserError(
                f"mesh='{text}' names an unknown axis '{name}': {did_you_mean(name, AXES)}"
            )
        if name in sizes:
            raise UserError(f"mesh='{text}' names the axis '{name}' twice: leave one out")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"mesh='{text}': write each axis as name=size, as in data=-1") from None
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"mesh='{text}': only one axis can be -1, which means all that are left")
    if not sizes or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"mesh='{text}' is no mesh: give its axes sizes from 1 on, or data=-1 for all devices"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > devices:
        raise UserError(
            f"mesh='{text}' does not fit the {devices} device(s) seen here ({fixed} asked for,"
            f" {devices} here): make the product of its sizes {devices} or less"
        )
    if rest:
        if devices % fixed:
            raise UserError(
                f"mesh='{text}' leaves no whole number for {rest[0]}=-1, because {fixed} does not"
                f" divide {devices}, the number of devices seen here: make the product of the other"
                f" sizes a divisor of {devices}"
            )
        sizes[rest[0]] = devices // fixed
    return {name: sizes[name] for name in AXES if name in sizes}


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the first of `devices`, as many as `text` asks for.

    Args:
      text: axes and sizes.
      devices: also those of a machine that is not there, as `jax.experimental.topologies` gives
        them; all of this run if left out.

    Raises:
      UserError: if the devices do not make up such a mesh, or its rows cannot be read by the
        processes. Every process of a run has the same error.
    """
    seen = list(jax.devices() if devices is None else devices)
    sizes = parse_mesh(text, len(seen))
    used = seen[: int(np.prod(list(sizes.values())))]
    if devices is None and len({d.process_index for d in used}) != jax.process_count():
        raise UserError(
            f"mesh='{text}' takes {len(used)} of {len(seen)} devices and leaves whole processes"
            " without one: use all devices, or fewer processes"
        )
    _check_boxes(text, len(used), seen)
    placed = arrange_devices(sizes, used)
    mesh = Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    _shares(mesh)
    return mesh


def _check_boxes(text: str, count: int, seen: Sequence[Any]) -> None:
    """Raises UserError if the first `count` of the chips of TPU slices make no box in each."""
    if _boxes(seen[:count]):
        return
    near = [max((n for n in range(1, count) if _boxes(seen[:n])), default=0)]
    near += [min((n for n in range(count, len(seen)) if _boxes(seen[:n])), default=0)]
    fewer = " or ".join(str(n) for n in near if n)
    raise UserError(
        f"mesh='{text}' takes {count} of {len(seen)} devices, which make no box of the slice: use"
        f" all {len(seen)} devices" + (f", or a mesh whose product is {fewer}" if fewer else "")
    )


def _boxes(devices: Sequence[Any]) -> bool:
    """Whether these are boxes of chips without a hole, one in each slice and equally large.

    Devices other than TPUs have no place in a slice, and are never in the way.
    """
    if any(getattr(d, "coords", None) is None for d in devices):
        return True
    places: dict[int, list[tuple[int, ...]]] = {}
    for d in devices:
        place = (*d.coords, getattr(d, "core_on_chip", 0))
        places.setdefault(getattr(d, "slice_index", 0), []).append(place)
    filled = [math.prod(np.ptp(np.array(slice), axis=0) + 1) for slice in places.values()]
    return filled == [len(devices) // len(places)] * len(places)


def arrange_devices(sizes: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the shape of the mesh, neighbours in an axis near each other.

    Devices of several slices, which a slow network connects, lie along `data`: within a copy of the
    state everything stays inside a slice.

    Raises:
      UserError: if there are several slices and `data` cannot be shared out among them.
    """
    shape = tuple(sizes.values())
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1:
        return _within(lambda split: mesh_utils.create_device_mesh(shape, devices, **split))
    if sizes.get("data", 1) % slices:
        raise UserError(
            f"the devices are in {slices} slices, between which only data can be split: make data a"
            f" multiple of {slices} in mesh"
        )
    across = tuple(slices if name == "data" else 1 for name in sizes)
    inside = tuple(size // parts for size, parts in zip(shape, across, strict=True))
    return _within(
        lambda split: mesh_utils.create_hybrid_device_mesh(inside, across, devices, **split)
    )


def _within(create: Callable[[dict[str, bool]], np.ndarray]) -> np.ndarray:
    """The mesh that keeps the axes of the machine whole, or one that does not if there is none."""
    try:
        return create({})
    except NotImplementedError:
        return create({"allow_split_physical_axes": True})


def axis_size(mesh: Mesh, *axes: str) -> int:
    """The product of some axes; one that the mesh lacks counts as 1."""
    return int(np.prod([mesh.shape.get(axis, 1) for axis in axes]))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of this mesh that split the rows of a batch."""
    return tuple(axis for axis in BATCH if axis in mesh.shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The rows of a batch split over data and fsdp, the same on the other axes."""
    return NamedSharding(mesh, P(batch_axes(mesh) or None))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows as part of one global batch, split over data and fsdp."""
    sharding, (_, parts) = batch_sharding(mesh), process_shard(mesh)
    if jax.process_count() == 1:  # all at once, in half the time
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            sharding, x, (len(x) * parts, *x.shape[1:])
        ),
        batch,
    )


def process_shard(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch this process reads, and in how many parts it is read.

    Processes whose devices hold the same rows, since they share out layers or texts among them,
    read the same part.

    Raises:
      UserError: if the processes cannot read equal parts.
    """
    found = _shares(mesh)
    return found[jax.process_index()] if len(found) > 1 else (0, 1)


@functools.cache
def _shares(mesh: Mesh) -> dict[int, tuple[int, int]]:
    """What `share` is for each process, the same wherever it is asked.

    The rows of a part need not follow each other: on a slice of TPUs the devices of a process are
    a box, and the rows of the box beside it lie between its own.
    """
    processes = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)
    of_row = processes.reshape(axis_size(mesh, *BATCH), -1)
    rows_of: dict[int, set[int]] = {}
    for row, those in enumerate(of_row):
        for process in those.tolist():
            rows_of.setdefault(process, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    # Equal parts of which no two have a row in common.
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) > len(of_row):
        count, named = len(rows_of), "·".join(batch_axes(mesh)) or "data"
        sizes = ",".join(f"{name}={size}" for name, size in mesh.shape.items())
        raise UserError(
            f"mesh={sizes} gives {count} processes unequal parts of a batch, though each process's"
            " devices must lie in whole rows or rows be shared by equal numbers of processes: use"
            f" all devices, and make {named}={len(of_row)} a multiple or a divisor of {count}"
        )
    number = {part: i for i, part in enumerate(parts)}
    return {p: (number[tuple(sorted(rows))], len(parts)) for p, rows in rows_of.items()}


def check_batch(size: int, mesh: Mesh, accumulate: int, what: str) -> None:
    """Raises UserError unless microbatches can be shared out evenly."""
    devices = axis_size(mesh, *BATCH)
    parts = devices * accumulate
    if size % parts:
        axes = batch_axes(mesh)
        named = f" = {'·'.join(axes)} of mesh" if len(axes) > 1 else ""
        raise UserError(
            f"{what}={size} must be divisible by {parts}, the number of devices"
            f" ({devices}{named}) times train.accumulate ({accumulate})"
        )


def local_mesh() -> Mesh:
    """A mesh of this process's first device, for work that one device does alone."""
    return make_mesh("data=1", jax.local_devices()[:1])
