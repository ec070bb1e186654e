"""The device mesh from its config string."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.errors import UserError, nearest

AXES = ("data",)


def parse_mesh(text: str, devices: int) -> dict[str, int]:
    """`"data=2"` as `{"data": 2}`; −1 stands for all devices that are left.

    Raises:
      UserError: for an unknown axis or sizes that do not make up the devices.
    """
    sizes = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise UserError(f"mesh='{text}' names an unknown axis '{name}': {nearest(name, AXES)}")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"mesh='{text}': write each axis as name=size, as in data=-1") from None
    rest = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(rest) == 1 and fixed > 0 and devices % fixed == 0:
        sizes[rest[0]] = devices // fixed
    total = int(np.prod(list(sizes.values())))
    if not sizes or total < 1 or min(sizes.values()) < 1 or total > devices:
        raise UserError(
            f"mesh='{text}' does not fit the {devices} device(s) seen here: use data=-1 for all"
        )
    return sizes


def make_mesh(text: str) -> Mesh:
    """The mesh over the first devices, as many as `text` asks for."""
    sizes = parse_mesh(text, jax.device_count())
    total = int(np.prod(list(sizes.values())))
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[:total],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows as part of one global batch, split over the data axis."""
    sharding = NamedSharding(mesh, P("data"))
    if jax.process_count() == 1:  # all at once, in half the time
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def check_batch(size: int, mesh: Mesh, accumulate: int, what: str) -> None:
    """Raises UserError unless microbatches can be shared out evenly."""
    parts = mesh.shape["data"] * accumulate
    if size % parts:
        raise UserError(
            f"{what}={size} must be divisible by {parts}, the number of devices"
            f" ({mesh.shape['data']}) times train.accumulate ({accumulate})"
        )


def local_mesh() -> Mesh:
    """A mesh of this process's first device, for work that one device does alone."""
    return jax.make_mesh(
        (1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1]
    )
