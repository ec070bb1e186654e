"""Shardings of a train state on a mesh.

Parameters are sharded by their logical axes, an optimizer's moments and the averages like their
parameters; everything else is small and replicated.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import UserError
from aigc_jax.core.state import TrainState, named_leaves
from aigc_jax.distributed.logical_axes import logical_to_mesh
from aigc_jax.distributed.mesh import axis_size, replicated


def param_specs(boxed: Any, mesh: Mapping[str, int]) -> dict[str, P]:
    """Returns the partition spec of each parameter by its name.

    Vectors and scalars without logical axes, such as the biases of Flax's own layers, are
    replicated.

    Args:
      boxed: `{player: parameters}` or their shapes, as an objective's `init` returns them: boxed
        with their logical axes.
      mesh: sizes of the mesh's axes.

    Raises:
      UserError: for a matrix or larger array without logical axes, and as `logical_to_mesh`.
    """
    logical = nn.get_partition_spec(boxed)
    sizes = dict(named_leaves(meta.unbox(boxed)))
    axes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(spec)
        for path, spec in jax.tree_util.tree_leaves_with_path(
            logical, is_leaf=lambda x: isinstance(x, P)
        )
    }
    specs = {}
    for name, leaf in sizes.items():
        if axes[name]:
            specs[name] = logical_to_mesh(axes[name], leaf.shape, mesh, name)
        elif leaf.ndim <= 1:
            specs[name] = P()
        else:
            raise UserError(
                f"the parameter {name} of {'×'.join(map(str, leaf.shape))} has no logical axes, so"
                " only mesh=data=… can train it: initialise it with"
                " nn.with_logical_partitioning(init, ('embed', 'mlp')), one name of RULES in"
                " aigc_jax/distributed/logical_axes.py, or None, for each axis"
            )
    return specs


def state_shardings(shapes: TrainState, boxed: Any, mesh: Mesh) -> TrainState:
    """Returns a sharding for every array of a train state.

    Args:
      shapes: the state's shapes, from `jax.eval_shape`.
      boxed: shapes of its parameters, boxed with their logical axes: see `param_specs`.
      mesh: the devices.

    Raises:
      UserError: as `param_specs`.
    """
    specs = param_specs(boxed, mesh.shape)
    sizes = {name: leaf.shape for name, leaf in named_leaves(shapes.params)}

    def like_params(prefix: str, tree: Any) -> Any:
        """Shards arrays like the parameters `prefix…` whose names are suffixes of theirs."""
        own = {name.removeprefix(prefix): spec for name, spec in specs.items()
               if name.startswith(prefix)}  # fmt: skip

        def sharding_of(path: tuple, leaf: Any) -> NamedSharding:
            parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
            ends = ("/".join(parts[i:]) for i in range(len(parts)))
            end = next((e for e in ends if e in own), None)
            if end is None or sizes[prefix + end] != leaf.shape:
                return NamedSharding(mesh, P())
            return NamedSharding(mesh, own[end])

        return jax.tree_util.tree_map_with_path(sharding_of, tree)

    shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
    return shardings.replace(
        params=like_params("", shapes.params),
        opt_state={p: like_params(f"{p}/", tree) for p, tree in shapes.opt_state.items()},
        ema=like_params("", shapes.ema),
        power_ema={width: like_params("", tree) for width, tree in shapes.power_ema.items()},
    )


def replicated_state(mesh: Mesh) -> TrainState:
    """Returns a prefix pytree of shardings that replicates a train state."""
    everywhere: Any = replicated(mesh)  # a sharding in place of each field
    return TrainState(**{field.name: everywhere for field in dataclasses.fields(TrainState)})


def is_state_sharded(mesh: Mesh) -> bool:
    """Returns whether a mesh shards the state and not only the batch."""
    return axis_size(mesh, "fsdp", "tensor") > 1


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns shapes with shardings, for `jit(…).lower` and for a restore.

    Args:
      shapes: a tree of arrays or shapes.
      shardings: a prefix pytree of shardings; an entry applies to its whole subtree.
    """
    return jax.tree.map(
        lambda sharding, part: jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), part
        ),
        shardings,
        shapes,
    )


def per_device(shapes: Any, shardings: Any) -> Any:
    """Returns the shapes of one device's shard of each array."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.sharding.shard_shape(s.shape), s.dtype),
        with_shardings(shapes, shardings),
    )
