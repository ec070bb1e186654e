"""The device mesh from its config string, and how batches lie on it.

A mesh has up to four named axes, the outermost first: `data` (whole copies of the state), `fsdp`
(copies that share out the state among themselves), `sequence` (each device has a part of every
text) and `tensor` (each device has a part of every layer). Rows of a batch are split over `data`
and `fsdp`; `rules.py` says what the others split.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.errors import UserError, nearest

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
            raise UserError(f"mesh='{text}' names an unknown axis '{name}': {nearest(name, AXES)}")
        if name in sizes:
            raise UserError(f"mesh='{text}' names the axis '{name}' twice: leave one out")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"mesh='{text}': write each axis as name=size, as in data=-1") from None
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"mesh='{text}': only one axis can be -1, which means all that are left")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if rest and fixed > 0 and devices % fixed == 0:
        sizes[rest[0]] = devices // fixed
    total = int(np.prod(list(sizes.values())))
    if not sizes or total < 1 or min(sizes.values()) < 1 or total > devices:
        raise UserError(
            f"mesh='{text}' does not fit the {devices} device(s) seen here: use data=-1 for all"
        )
    return {name: sizes[name] for name in AXES if name in sizes}


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the first of `devices`, as many as `text` asks for.

    Args:
      text: axes and sizes.
      devices: also those of a machine that is not there, as `jax.experimental.topologies` gives
        them; all of this run if left out.
    """
    seen = list(jax.devices() if devices is None else devices)
    sizes = parse_mesh(text, len(seen))
    used = seen[: int(np.prod(list(sizes.values())))]
    if devices is None and len({d.process_index for d in used}) != jax.process_count():
        raise UserError(
            f"mesh='{text}' takes {len(used)} of {len(seen)} devices and leaves whole processes"
            " without one: use all devices, or fewer processes"
        )
    placed = arrange(sizes, used)
    return Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def arrange(sizes: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
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


def size_of(mesh: Mesh, *axes: str) -> int:
    """The product of some axes; one that the mesh lacks counts as 1."""
    return int(np.prod([mesh.shape.get(axis, 1) for axis in axes]))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of this mesh that split the rows of a batch."""
    return tuple(axis for axis in BATCH if axis in mesh.shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def rows(mesh: Mesh) -> NamedSharding:
    """The rows of a batch split over data and fsdp, the same on the other axes."""
    return NamedSharding(mesh, P(batch_axes(mesh) or None))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows as part of one global batch, split over data and fsdp."""
    sharding, (_, parts) = rows(mesh), share(mesh)
    if jax.process_count() == 1:  # all at once, in half the time
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            sharding, x, (len(x) * parts, *x.shape[1:])
        ),
        batch,
    )


@functools.cache
def share(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch this process reads, and in how many parts it is read.

    Processes whose devices hold the same rows, since they share out layers or texts among them,
    read the same part.

    Raises:
      UserError: if the rows of a process are no part that it could read at once.
    """
    processes = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)
    if len(set(processes.flat)) == 1:
        return 0, 1
    of_row = processes.reshape(size_of(mesh, *BATCH), -1)
    mine = np.flatnonzero((of_row == jax.process_index()).any(1))
    first, count = int(mine[0]), len(mine)
    even = len(of_row) % count == 0 and first % count == 0
    if not even or (mine != first + np.arange(count)).any():
        raise UserError(
            "the mesh gives a process rows of a batch that do not follow each other: choose"
            " data·fsdp as a multiple or a divisor of the number of processes"
        )
    return first // count, len(of_row) // count


def check_batch(size: int, mesh: Mesh, accumulate: int, what: str) -> None:
    """Raises UserError unless microbatches can be shared out evenly."""
    devices = size_of(mesh, *BATCH)
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
