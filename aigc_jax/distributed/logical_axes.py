"""Logical axes of arrays, and the rules that map them to axes of the mesh.

Networks name the axes of their parameters where they are initialised, with Flax's
`nn.with_logical_partitioning(init, names)` or the `kernel_axes` of the layers in `nn/`, and those
of activations with `with_logical_constraint`. `RULES` maps each name to the mesh axes that shard
it; mesh axes of size 1 are ignored.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import UserError, did_you_mean
from aigc_jax.distributed.mesh import AXES as MESH_AXES
from aigc_jax.distributed.mesh import BATCH

T = TypeVar("T")
Axes = tuple[str | None, ...]  # logical name of each axis of an array; None: replicated

# (logical axis, mesh axes that shard it), as in Flax's `logical_axis_rules`, except that the
# leftmost axis of an array takes a mesh axis that several axes could use.
# fsdp shards parameters by the inputs of layers; a layer is gathered for its computation.
# tensor shards them by the outputs of layers (Shoeybi et al. 2019): heads, hidden units, channels.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("batch", BATCH),
    ("length", ("sequence",)),  # of queries; keys and values are gathered
    ("embed", ("fsdp",)),
    ("conv_in", ("fsdp",)),
    ("dense_in", ("fsdp",)),
    # Outputs of a layer with an arbitrary number of inputs, such as the channels of an image.
    ("stem", ("fsdp", "tensor")),
    ("vocab", ("tensor",)),
    ("mlp", ("tensor",)),
    ("heads", ("tensor",)),
    ("kv", ("tensor",)),
    ("conv_out", ("tensor",)),
    ("dense_out", ("tensor",)),
    # Never sharded: small, or of arbitrary size.
    ("layers", ()),
    ("norm", ()),
    ("bias", ()),
    ("rank", ()),
    ("position", ()),
    ("classes", ()),
    ("latent", ()),
    ("inputs", ()),
    ("outputs", ()),
)
NAMES = tuple(name for name, _ in RULES)

# Remedies for an axis whose size is not divisible; {size} is the next divisible size.
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
    "stem": "change the first of model.channels or model.hidden to a multiple",
}


def rules_for(mesh: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Returns the rules of a mesh, restricted to axes with more than one device.

    Args:
      mesh: sizes of the mesh's axes.
    """
    return {name: tuple(a for a in over if mesh.get(a, 1) > 1) for name, over in RULES}


def logical_to_mesh(axes: Axes, shape: Sequence[int], mesh: Mapping[str, int], name: str) -> P:
    """Returns the partition spec of a parameter with these logical axes.

    A mesh axis shards at most one axis of an array, the leftmost that has a rule for it.

    Args:
      axes: logical names of the array's axes.
      shape: its sizes.
      mesh: sizes of the mesh's axes.
      name: name of the parameter, for messages.

    Raises:
      UserError: if the number of names differs from that of the axes, a name has no rule, or a size
        is not divisible.
    """
    if len(axes) != len(shape):
        raise UserError(
            f"the parameter {name} of {_times(shape)} has {len(axes)} logical axes {axes}: give one"
            " for each of its axes"
        )
    rules, taken, parts = rules_for(mesh), set(), []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in rules:
            raise UserError(
                f"the parameter {name} has a logical axis '{axis}' without a rule:"
                f" {did_you_mean(axis, NAMES)}, or None for an axis that is replicated"
            )
        over = tuple(a for a in rules.get(axis or "", ()) if a not in taken)
        taken |= set(over)
        count = _count(over, mesh)
        if size % count:
            remedy = REMEDIES.get(str(axis), "change its size to a multiple")
            remedy = remedy.format(size=-(-size // count) * count)
            raise UserError(
                f"the parameter {name} of {_times(shape)} cannot be sharded: its axis"
                f" '{axis}' of {size} is not divisible by {'·'.join(over)}={count} of mesh:"
                f" {remedy}, or make {'·'.join(over)} smaller"
            )
        parts.append(over[0] if len(over) == 1 else over or None)
    while parts and parts[-1] is None:
        parts.pop()
    return P(*parts)


def with_logical_constraint(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of `x` by logical axis names.

    The identity without a mesh (see `with_mesh`) and where nothing is sharded: on one device, under
    `pmap`, and for sizes that are not divisible, such as small batches of samples.

    Args:
      x: an activation.
      axes: logical names of its axes; None: replicated. Trailing axes without a name are left to
        the compiler.
    """
    mesh = _mesh()
    rules, parts = rules_for(mesh), []
    for axis, size in zip(axes, x.shape, strict=False):
        over = rules[axis] if axis else ()
        parts.append(over if over and size % _count(over, mesh) == 0 else None)
    if not any(parts):
        return x
    free = [P.UNCONSTRAINED] * (x.ndim - len(parts))
    return jax.lax.with_sharding_constraint(x, P(*parts, *free))


def with_mesh(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """Wraps `function` so that logical constraints in it refer to `mesh` when it is traced."""

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def shard_map_over(
    function: Callable[..., T], given: Sequence[tuple[jax.Array, Axes]], axes: Axes
) -> T:
    """Runs `function` on each device's shard of its arguments, for what XLA cannot partition.

    Args:
      function: pure; a shard of its result depends only on the same shard of its arguments.
      given: its arguments, with their logical axes; an axis whose size is not divisible is
        replicated.
      axes: logical axes of the result, which must be axes of the arguments.
    """
    mesh = _mesh()
    if math.prod(mesh.values()) == 1:
        return function(*(x for x, _ in given))
    rules = rules_for(mesh)
    sizes = {axis: size for x, names in given for axis, size in zip(names, x.shape, strict=True)}

    def spec(names: Axes) -> P:
        over = [rules[axis] if axis else () for axis in names]
        rest = [sizes[axis] % _count(o, mesh) for axis, o in zip(names, over, strict=True)]
        return P(*(o if o and not r else None for o, r in zip(over, rest, strict=True)))

    run = jax.shard_map(
        function,
        in_specs=tuple(spec(names) for _, names in given),
        out_specs=spec(axes),
        check_vma=False,
    )
    return run(*(x for x, _ in given))


def has_mesh() -> bool:
    """Returns whether there is a current mesh with an axis that can shard arrays."""
    return bool(_mesh())


def num_shards(*axes: str) -> int:
    """Returns the number of shards of an array with these logical axes on the current mesh."""
    mesh = _mesh()
    rules = rules_for(mesh)
    return _count({a for axis in axes for a in rules[axis]}, mesh)


def unsharded(tree: Any) -> Any:
    """Boxes arrays as parameters that are replicated on every mesh."""
    return jax.tree.map(lambda x: nn.LogicallyPartitioned(x, (None,) * len(x.shape)), tree)


def _mesh() -> dict[str, int]:
    """Returns the Auto axes of the current mesh and their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    each = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {a: n for a, n, kind in each if kind == AxisType.Auto and a in MESH_AXES}


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _count(axes: Iterable[str], mesh: Mapping[str, int]) -> int:
    return math.prod(mesh[a] for a in axes)
