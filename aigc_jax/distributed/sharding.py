"""Where the arrays of a train state lie on a mesh.

Parameters go by their models' tables; an optimizer's moments and the averages lie where their
parameters lie; all else is small and lies everywhere.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import UserError
from aigc_jax.core.state import TrainState, named_leaves
from aigc_jax.distributed.logical_axes import Axes, logical_to_mesh
from aigc_jax.distributed.mesh import replicated, size_of

# The end of a parameter's name, and the names of its axes: ("mlp/in/kernel", ("embed", "mlp")).
Table = Sequence[tuple[str, Axes]]
MUTABLES = "mutables"  # those of a frozen player are small too
LAYERS = "layers"  # arrays under it hold those of all layers, along a first axis of that name


def axes_of(name: str, dimensions: int, table: Table) -> Axes | None:
    """The names of a parameter's axes: those of the row that says most of its name's end.

    Args:
      name: as in "model/layers/attention/query/kernel".
      dimensions: how many axes it has; a row of another number is not its own.
      table: rows; `*` stands for anything within a part of the name.
    """
    parts = name.split("/")
    stacked = (LAYERS,) * (LAYERS in parts)
    found: tuple[tuple[int, int], Axes] | None = None
    for row, axes in table:
        end = row.split("/")
        own = parts[-len(end) :]
        if len(axes) + len(stacked) != dimensions or len(own) != len(end):
            continue
        says = (len(end), len(row.replace("*", "")))
        if all(map(fnmatchcase, own, end)) and (found is None or says > found[0]):
            found = says, axes
    return None if found is None else stacked + found[1]


def param_specs(shapes: Any, mesh: Mapping[str, int], table: Table) -> dict[str, P]:
    """How each parameter is split, by its name.

    Args:
      shapes: `{player: parameters}`, or their shapes.
      mesh: sizes of the mesh's axes.
      table: of the models.

    Raises:
      UserError: for a parameter of which the table says nothing, and as `spec_of`.
    """
    specs = {}
    for name, leaf in named_leaves(shapes):
        if not leaf.shape or MUTABLES in name.split("/"):
            specs[name] = P()
            continue
        axes = axes_of(name, len(leaf.shape), table)
        if axes is None:
            raise UserError(
                f"the axes of the parameter {name} of {'×'.join(map(str, leaf.shape))} have no"
                " names, so no mesh but data=… can split it: add a row for it to AXES beside its"
                " model"
            )
        specs[name] = logical_to_mesh(axes, leaf.shape, mesh, name)
    return specs


def state_shardings(shapes: TrainState, mesh: Mesh, table: Table) -> TrainState:
    """A sharding for every array of a train state.

    Args:
      shapes: the state's, as `jax.eval_shape` gives them.
      mesh: the devices.
      table: of the models.

    Raises:
      UserError: as `param_specs`.
    """
    specs = param_specs(shapes.params, mesh.shape, table)
    sizes = {name: leaf.shape for name, leaf in named_leaves(shapes.params)}

    def beside(prefix: str, tree: Any) -> Any:
        """Those of arrays whose names end like those of the parameters `prefix…`."""
        own = {name.removeprefix(prefix): spec for name, spec in specs.items()
               if name.startswith(prefix)}  # fmt: skip

        def place(path: tuple, leaf: Any) -> NamedSharding:
            parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
            ends = ("/".join(parts[i:]) for i in range(len(parts)))
            end = next((e for e in ends if e in own), None)
            same = end is not None and sizes[prefix + end] == leaf.shape
            return NamedSharding(mesh, own[end] if same else P())

        return jax.tree_util.tree_map_with_path(place, tree)

    whole = jax.tree.map(lambda _: replicated(mesh), shapes)
    return whole.replace(
        params=beside("", shapes.params),
        opt_state={p: beside(f"{p}/", tree) for p, tree in shapes.opt_state.items()},
        ema=beside("", shapes.ema),
        power_ema={width: beside("", tree) for width, tree in shapes.power_ema.items()},
    )


def replicated_state(mesh: Mesh) -> TrainState:
    """A sharding for each part of a train state that lies on every device."""
    whole = replicated(mesh)
    return TrainState(**{field.name: whole for field in dataclasses.fields(TrainState)})


def is_state_sharded(mesh: Mesh) -> bool:
    """Whether the devices of a mesh share out the state, not only the batch."""
    return size_of(mesh, "fsdp", "tensor") > 1


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes that know where they lie: what `jit(…).lower` and a restore are given.

    Args:
      shapes: a tree of arrays or shapes.
      shardings: one for all, or a tree of them.
    """
    return jax.tree.map(
        lambda sharding, part: jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), part
        ),
        shardings,
        shapes,
    )


def per_device(shapes: Any, shardings: Any) -> Any:
    """The shapes of what a device holds of each array."""
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.sharding.shard_shape(s.shape), s.dtype),
        with_shardings(shapes, shardings),
    )
