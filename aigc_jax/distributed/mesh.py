"""Device mesh from its config string, and the sharding of batches.

A mesh has up to four named axes, the outermost first: `data` (replicas of the state), `fsdp` (fully
sharded data parallelism: the state is sharded over its devices), `sequence` (sequence parallelism)
and `tensor` (tensor parallelism). Rows of a batch are sharded over `data` and `fsdp`; for the
others see `logical_axes.py`.
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
BATCH = ("data", "fsdp")  # the axes that shard the rows of a batch


def parse_mesh(text: str, devices: int) -> dict[str, int]:
    """Parses `"data=2,fsdp=-1"` to `{"data": 2, "fsdp": 4}`; −1 means all remaining devices.

    The result is in the order of `AXES`, whatever the order in `text`: the inner axes communicate
    most, the outer ones may span a slow network.

    Raises:
      UserError: for an unknown axis, or sizes that do not match the number of devices.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise UserError(
                f"mesh='{text}' names an unknown axis '{name}': {did_you_mean(name, AXES)}"
            )
        if name in sizes:
            raise UserError(f"mesh='{text}' names the axis '{name}' twice: remove one")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"mesh='{text}': write each axis as name=size, as in data=-1") from None
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"mesh='{text}': only one axis can be -1 (all remaining devices)")
    if not sizes or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(
            f"invalid mesh='{text}': sizes must be at least 1, or -1 for all remaining devices"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > devices:
        raise UserError(
            f"mesh='{text}' needs {fixed} devices, but there are {devices}: make the product of its"
            f" sizes at most {devices}"
        )
    if rest:
        if devices % fixed:
            raise UserError(
                f"mesh='{text}': {rest[0]}=-1 is not an integer, because {fixed} does not divide"
                f" the {devices} devices: make the product of the other sizes divide {devices}"
            )
        sizes[rest[0]] = devices // fixed
    return {name: sizes[name] for name in AXES if name in sizes}


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh over the first of `devices`, as many as `text` needs.

    Args:
      text: axes and sizes.
      devices: devices, which may be abstract ones from `jax.experimental.topologies`; defaults to
        all devices of the run.

    Raises:
      UserError: if the devices do not suit the mesh, or the processes cannot read equal shards of a
        batch. Every process of a run raises the same error.
    """
    seen = list(jax.devices() if devices is None else devices)
    sizes = parse_mesh(text, len(seen))
    used = seen[: int(np.prod(list(sizes.values())))]
    if devices is None and len({d.process_index for d in used}) != jax.process_count():
        raise UserError(
            f"mesh='{text}' uses {len(used)} of {len(seen)} devices and leaves processes without a"
            " device: use all devices, or fewer processes"
        )
    _check_boxes(text, len(used), seen)
    placed = arrange_devices(sizes, used)
    mesh = Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    _shares(mesh)
    return mesh


def _check_boxes(text: str, count: int, seen: Sequence[Any]) -> None:
    """Raises UserError unless the first `count` chips of TPU slices form a box in each slice."""
    if _boxes(seen[:count]):
        return
    near = [max((n for n in range(1, count) if _boxes(seen[:n])), default=0)]
    near += [min((n for n in range(count, len(seen)) if _boxes(seen[:n])), default=0)]
    fewer = " or ".join(str(n) for n in near if n)
    raise UserError(
        f"mesh='{text}' uses {count} of {len(seen)} devices, which do not form a box in the slice:"
        f" use all {len(seen)} devices" + (f", or a mesh whose product is {fewer}" if fewer else "")
    )


def _boxes(devices: Sequence[Any]) -> bool:
    """Returns whether the chips form one box without holes in each slice, all of equal size.

    True for devices other than TPUs.
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
    """Arranges devices in the shape of the mesh, with neighbours along an axis close to each other.

    Slices, which are connected by a slow network (DCN), are arranged along `data`, so that all
    other communication stays within a slice.

    Raises:
      UserError: if there are several slices and their number does not divide `data`.
    """
    shape = tuple(sizes.values())
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1:
        return _within(lambda split: mesh_utils.create_device_mesh(shape, devices, **split))
    if sizes.get("data", 1) % slices:
        raise UserError(
            f"the devices are in {slices} slices, over which only data can be sharded: make data a"
            f" multiple of {slices} in mesh"
        )
    across = tuple(slices if name == "data" else 1 for name in sizes)
    inside = tuple(size // parts for size, parts in zip(shape, across, strict=True))
    return _within(
        lambda split: mesh_utils.create_hybrid_device_mesh(inside, across, devices, **split)
    )


def _within(create: Callable[[dict[str, bool]], np.ndarray]) -> np.ndarray:
    """Returns a mesh that keeps physical axes intact if there is one, else one that splits them."""
    try:
        return create({})
    except NotImplementedError:
        return create({"allow_split_physical_axes": True})


def axis_size(mesh: Mesh, *axes: str) -> int:
    """Returns the product of the sizes of axes; a missing axis counts as 1."""
    return int(np.prod([mesh.shape.get(axis, 1) for axis in axes]))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes of a mesh that shard the rows of a batch."""
    return tuple(axis for axis in BATCH if axis in mesh.shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: rows over data and fsdp, replicated over other axes."""
    return NamedSharding(mesh, P(batch_axes(mesh) or None))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Places this process's rows as part of a global batch, sharded over data and fsdp."""
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
    """Returns the shard of a batch that this process reads, as (index, number of shards).

    Processes whose devices have the same rows, because of tensor or sequence parallelism, read the
    same shard.

    Raises:
      UserError: if the processes cannot read shards of equal size.
    """
    found = _shares(mesh)
    return found[jax.process_index()] if len(found) > 1 else (0, 1)


@functools.cache
def _shares(mesh: Mesh) -> dict[int, tuple[int, int]]:
    """Returns `process_shard` of each process; the result is the same in all processes.

    The rows of a shard need not be contiguous: on a TPU slice the devices of a process form a box,
    and its rows interleave with those of neighbouring boxes.
    """
    processes = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)
    of_row = processes.reshape(axis_size(mesh, *BATCH), -1)
    rows_of: dict[int, set[int]] = {}
    for row, those in enumerate(of_row):
        for process in those.tolist():
            rows_of.setdefault(process, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    # Shards of equal size that are pairwise disjoint.
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) > len(of_row):
        count, named = len(rows_of), "·".join(batch_axes(mesh)) or "data"
        sizes = ",".join(f"{name}={size}" for name, size in mesh.shape.items())
        raise UserError(
            f"mesh={sizes} gives {count} processes unequal shards of a batch: use all devices, and"
            f" make {named}={len(of_row)} a multiple or a divisor of {count}"
        )
    number = {part: i for i, part in enumerate(parts)}
    return {p: (number[tuple(sorted(rows))], len(parts)) for p, rows in rows_of.items()}


def check_batch(size: int, mesh: Mesh, accumulate: int, what: str) -> None:
    """Raises UserError unless microbatches can be sharded evenly."""
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
    """Returns a mesh of this process's first device, for work on a single device."""
    return make_mesh("data=1", jax.local_devices()[:1])
