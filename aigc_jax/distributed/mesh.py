"""The device mesh of a config string, and the sharding of batches on it.

A mesh has up to four named axes, the outermost first: `data` (replicas of the state), `fsdp` (the
state is sharded), `sequence` (activations are sharded by position) and `tensor` (layers are
sharded). Rows of a batch are sharded over `data` and `fsdp`; see `logical_axes.py` for the others.
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
    """Parses `"data=2,fsdp=-1"` to `{"data": 2, "fsdp": 4}`; −1 stands for all devices left.

    The result is in the order of `AXES`, whatever the order of `text`: outer axes may cross a slow
    network, inner axes communicate most.

    Raises:
      UserError: for an unknown axis, or sizes that do not fit the devices.
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
            f"invalid mesh '{text}': give sizes of at least 1, or data=-1 for all devices"
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
    """Returns the mesh of `text` over the first of `devices`.

    Args:
      text: axes and sizes.
      devices: defaults to all devices of the run; may be those of `jax.experimental.topologies`,
        which do not exist here.

    Raises:
      UserError: if the devices do not form such a mesh, or the processes cannot read equal parts of
        its batches. Every process of a run raises the same error.
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
    """Raises UserError unless the first `count` chips form a box in each TPU slice."""
    if _boxes(seen[:count]):
        return
    near = [max((n for n in range(1, count) if _boxes(seen[:n])), default=0)]
    near += [min((n for n in range(count, len(seen)) if _boxes(seen[:n])), default=0)]
    fewer = " or ".join(str(n) for n in near if n)
    raise UserError(
        f"mesh='{text}' takes {count} of {len(seen)} devices, which are not a box of the slice: use"
        f" all {len(seen)} devices" + (f", or a mesh whose product is {fewer}" if fewer else "")
    )


def _boxes(devices: Sequence[Any]) -> bool:
    """Returns whether TPU chips form one box without holes per slice, all of equal size.

    True for other devices, which have no coordinates.
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
    """Arranges devices in the shape of the mesh, so that neighbours in an axis are close.

    Slices, which a slow network connects, are arranged along `data`, so that a replica of the state
    is within one slice.

    Raises:
      UserError: if `data` is not a multiple of the number of slices.
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
    """Creates a mesh that keeps physical axes whole if possible, else one that splits them."""
    try:
        return create({})
    except NotImplementedError:
        return create({"allow_split_physical_axes": True})


def axis_size(mesh: Mesh, *axes: str) -> int:
    """Returns the product of the sizes of some axes; a missing axis counts as 1."""
    return int(np.prod([mesh.shape.get(axis, 1) for axis in axes]))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes of this mesh that shard the rows of a batch."""
    return tuple(axis for axis in BATCH if axis in mesh.shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over data and fsdp, replicated over other axes."""
    return NamedSharding(mesh, P(batch_axes(mesh) or None))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts this process's rows into one global batch, sharded over data and fsdp."""
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
    """Returns (index, count): the part of a batch that this process reads, of how many.

    Processes whose devices hold the same rows, as with `tensor` or `sequence` across processes,
    read the same part.

    Raises:
      UserError: if the processes cannot read equal parts.
    """
    found = _shares(mesh)
    return found[jax.process_index()] if len(found) > 1 else (0, 1)


@functools.cache
def _shares(mesh: Mesh) -> dict[int, tuple[int, int]]:
    """Returns `process_shard` of every process, the same in each of them.

    The rows of a part need not be contiguous: on a TPU slice the devices of a process are a box,
    whose rows interleave with those of its neighbours.
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
    """Raises UserError unless microbatches are divisible among the devices."""
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
    """Returns a mesh of this process's first device."""
    return make_mesh("data=1", jax.local_devices()[:1])
