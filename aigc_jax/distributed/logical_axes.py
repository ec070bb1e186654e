"""What the axes of arrays are called, and which axis of the mesh splits which of them.

Models name the axes of their parameters (`AXES` in their files) and of what they compute (`split`).
A strategy is a table from these names to an axis of the mesh; meshes with several axes have the
tables of all of them.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import UserError, did_you_mean
from aigc_jax.distributed.mesh import BATCH

T = TypeVar("T")
Axes = tuple[str | None, ...]  # a name for each axis of an array; None: it is never split

DATA: dict[str, tuple[str, ...]] = {"batch": BATCH}  # every device has the whole state

# The state is shared out by what layers read; a device gathers a layer when its turn comes.
FSDP: dict[str, tuple[str, ...]] = {
    "batch": BATCH,
    "embed": ("fsdp",),
    "conv_in": ("fsdp",),
    "dense_in": ("fsdp",),
    "first": ("fsdp",),
}

# Layers are shared out by what they compute (Shoeybi et al. 2019): heads, hidden units, channels.
TENSOR: dict[str, tuple[str, ...]] = {
    "vocab": ("tensor",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv": ("tensor",),
    "conv_out": ("tensor",),
    "dense_out": ("tensor",),
    "first": ("tensor",),
}

SEQUENCE: dict[str, tuple[str, ...]] = {"length": ("sequence",)}  # keys and values are gathered

TABLES = {"data": DATA, "fsdp": FSDP, "sequence": SEQUENCE, "tensor": TENSOR}
# What nothing splits: it is small, or of any number, as the inputs of a first layer are; what that
# layer computes is `first`, which both fsdp and tensor split.
WHOLE = ("layers", "norm", "bias", "rank", "position", "classes", "colours", "latent", "inputs",
         "outputs")  # fmt: skip
NAMES = (*dict.fromkeys(name for table in TABLES.values() for name in table), *WHOLE)

# What to change if an axis of this name does not divide; {size} is the next size that does.
REMEDIES = {
    "vocab": "set model.vocab_size={size}",
    "embed": "change model.width (or model.embedding) to a multiple",
    "mlp": "change the width inside the perceptrons (model.mlp_width, model.mlp_ratio) to a"
    " multiple",
    "heads": "change model.heads to a multiple",
    "kv": "change model.kv_heads to a multiple",
    "conv_in": "change model.channels to multiples",
    "conv_out": "change model.channels to multiples",
    "dense_in": "change model.hidden (or the size of the images) to multiples",
    "dense_out": "change model.hidden to multiples",
    "first": "change the first of model.channels or model.hidden to a multiple",
}


def rules_of(shape: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """The table of a mesh: that of each of its axes with more than one device, joined.

    Args:
      shape: sizes of the mesh's axes.
    """
    table: dict[str, tuple[str, ...]] = dict.fromkeys(NAMES, ())
    for axis, size in shape.items():
        if size > 1:
            for name, over in TABLES[axis].items():
                known = [a for a in over if shape.get(a, 1) > 1]
                table[name] = tuple(dict.fromkeys((*table[name], *known)))
    return table


def logical_to_mesh(axes: Axes, shape: Sequence[int], mesh: Mapping[str, int], name: str) -> P:
    """How a parameter is split.

    An axis of the mesh splits one axis of an array at most, the first of its names.

    Args:
      axes: the names of the array's axes.
      shape: its sizes.
      mesh: sizes of the mesh's axes.
      name: of the parameter, for messages.

    Raises:
      UserError: for a name without a rule, or a size that does not divide.
    """
    table, taken, parts = rules_of(mesh), set(), []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in table:
            raise UserError(
                f"the parameter {name} has an axis '{axis}' without a rule:"
                f" {did_you_mean(axis, NAMES)},"
                " or add it to a table of parallel/rules.py"
            )
        over = tuple(a for a in table.get(axis or "", ()) if a not in taken)
        taken |= set(over)
        count = _count(over, mesh)
        if size % count:
            remedy = REMEDIES.get(str(axis), "change its size to a multiple")
            remedy = remedy.format(size=-(-size // count) * count)
            raise UserError(
                f"the parameter {name} of {'×'.join(map(str, shape))} cannot be split: its axis"
                f" '{axis}' of {size} does not divide by {'·'.join(over)}={count} of mesh:"
                f" {remedy}, or make {'·'.join(over)} smaller"
            )
        parts.append(over[0] if len(over) == 1 else over or None)
    while parts and parts[-1] is None:
        parts.pop()
    return P(*parts)


def with_logical_constraint(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, told to the compiler to lie on the mesh as its axes' names say.

    The identity where there is no mesh (see `on`) or nothing to split: on one device, under
    `pmap`, and for sizes that do not divide, as those of a few samples may not.

    Args:
      x: computed by a model.
      axes: names of its axes; None: whole on each device. Axes without a name at the end are left
        to the compiler.
    """
    mesh = _mesh()
    table, parts = rules_of(mesh), []
    for axis, size in zip(axes, x.shape, strict=False):
        over = table[axis] if axis else ()
        parts.append(over if over and size % _count(over, mesh) == 0 else None)
    if not any(parts):
        return x
    free = [P.UNCONSTRAINED] * (x.ndim - len(parts))
    return jax.lax.with_sharding_constraint(x, P(*parts, *free))


def with_mesh(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """`function`, to be compiled, with `split` in it splitting for this mesh."""

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def shard_map_over(
    function: Callable[..., T], given: Sequence[tuple[jax.Array, Axes]], axes: Axes
) -> T:
    """`function` of arrays, run by each device on its own part: for what XLA cannot split itself.

    Args:
      function: pure, and such that a part of its result needs the same part of its arguments.
      given: its arguments, with the names of their axes; an axis whose size does not divide is
        whole on each device.
      axes: names of the result's axes, which must be axes of the arguments.
    """
    mesh = _mesh()
    if math.prod(mesh.values()) == 1:
        return function(*(x for x, _ in given))
    table = rules_of(mesh)
    sizes = {axis: size for x, names in given for axis, size in zip(names, x.shape, strict=True)}

    def spec(names: Axes) -> P:
        over = [table[axis] if axis else () for axis in names]
        whole = [sizes[axis] % _count(o, mesh) for axis, o in zip(names, over, strict=True)]
        return P(*(o if o and not rest else None for o, rest in zip(over, whole, strict=True)))

    run = jax.shard_map(
        function,
        in_specs=tuple(spec(names) for _, names in given),
        out_specs=spec(axes),
        check_vma=False,
    )
    return run(*(x for x, _ in given))


def has_mesh() -> bool:
    """Whether there is a mesh at hand along which to split."""
    return bool(_mesh())


def num_shards(*axes: str) -> int:
    """Among how many devices of the mesh an array with axes of these names is shared out."""
    mesh = _mesh()
    table = rules_of(mesh)
    return _count({a for axis in axes for a in table[axis]}, mesh)


def _mesh() -> dict[str, int]:
    """The axes of the mesh at hand along which the compiler may split, and their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    each = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {a: n for a, n, kind in each if kind == AxisType.Auto and a in TABLES}


def _count(axes: Iterable[str], mesh: Mapping[str, int]) -> int:
    return math.prod(mesh[a] for a in axes)
