"""What a compiled program does on one device in one run: FLOPs, bytes of memory, collectives.

XLA's own `cost_analysis` takes the body of a loop once, however often it turns.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from aigc_jax.tools.plan.hbm_traffic import traffic
from aigc_jax.tools.plan.hlo import Array, Computation, Instruction, Program
from aigc_jax.tools.plan.replica_groups import axes_of, groups

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
SCATTERING = "all-reduce-scatter"  # how a TPU's compiler calls a fusion that is a reduce-scatter


@dataclasses.dataclass
class Collective:
    """Collectives of one kind over the same devices.

    Attributes:
      kind: such as "all-gather".
      axes: of the mesh, over which they run.
      group: the devices of one group, as places in the mesh.
      bytes: of the whole array on each device, of all of them in one run of the program.
      count: how many.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    bytes: float = 0.0
    count: float = 0.0


@dataclasses.dataclass
class Costs:
    """Of one device in one run of a program.

    Attributes:
      flops: of matrix products and convolutions.
      bytes: that its main memory reads and writes.
      collectives: by kind and axes.
      kernels: calls of compiled kernels, whose FLOPs the program does not tell.
      endless: loops whose number of turns is not known; each counts once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    kernels: float = 0.0
    endless: int = 0


def costs(program: Program, mesh: Mapping[str, int], slices: Sequence[int] | None = None) -> Costs:
    """What a program costs a device.

    Args:
      program: compiled for a mesh.
      mesh: sizes of its axes.
      slices: of each device in it, the number of its slice; one slice if left out.
    """
    found = Costs()
    across = tuple(np.unique(np.asarray(slices or [0]), return_index=True)[1].tolist())
    seen: dict[tuple, Collective] = {}
    for computation, instruction, times in program.walk():
        pairs = [(computation, instruction), *program.inside(instruction)]
        _add_slow(seen, computation, instruction, times, mesh, across)
        for inner, one in pairs:
            found.flops += times * flops(inner, one)
            kind = one.opcode.removesuffix("-start")
            if kind in KINDS and not _goes_on(instruction, inner, one):
                scatters = _fused_scatter(instruction, one)
                _add(seen, inner, one, "reduce-scatter" if scatters else kind, times, mesh)
        found.bytes += times * traffic(program, computation, instruction)
        found.kernels += times * (instruction.opcode == "custom-call" and _is_kernel(instruction))
        if instruction.opcode == "while" and not program.turns(computation, instruction):
            found.endless += 1
    found.collectives = sorted(seen.values(), key=lambda c: -c.bytes)
    return found


def _is_kernel(instruction: Instruction) -> bool:
    return bool(re.search(r'custom_call_target="(tpu_custom_call|__\w+)', instruction.text))


def _goes_on(outer: Instruction, inner: Computation, one: Instruction) -> bool:
    """Whether it is a collective that has started before: TPUs run them in parts, beside products.

    Every part of it is written as the whole collective inside a fusion.
    """
    if one is outer:
        return False
    name = outer.called.get("calls", "")
    done = any("AsyncCollectiveDone" in i.text for i in inner.values() if i.root)
    return done or name.startswith("async_collective_fusion")


def _add_slow(
    seen: dict[tuple, Collective],
    computation: Computation,
    one: Instruction,
    times: float,
    mesh: Mapping[str, int],
    across: tuple[int, ...],
) -> None:
    """Counts what goes from slice to slice: TPUs send it through their hosts."""
    sent = re.search(r'_xla_host_transfer_rendezvous="([a-z\-]+?)[._\d]*"', one.text)
    if one.opcode != "send" or sent is None or len(across) < 2:
        return
    size = computation[one.operands[0]].bytes
    axes = axes_of(across, mesh)
    collective = seen.setdefault((sent[1], axes, "slices"), Collective(sent[1], axes, across))
    collective.bytes += times * size
    collective.count += times


def _fused_scatter(outer: Instruction, one: Instruction) -> bool:
    return one is not outer and outer.called.get("calls", "").startswith(SCATTERING)


def _add(
    seen: dict[tuple, Collective],
    computation: Computation,
    one: Instruction,
    kind: str,
    times: float,
    mesh: Mapping[str, int],
) -> None:
    """Counts a collective: of a gather the whole result, of a scatter the whole operand."""
    rows = groups(one, int(np.prod(list(mesh.values()))))
    if kind == "collective-permute":  # pairs: each sends along these axes
        axes = tuple(a for a in mesh if any(a in axes_of(pair, mesh) for pair in rows))
        group = tuple(rows[0])
    else:
        group = tuple(int(n) for n in rows[0])
        axes = axes_of(group, mesh)
    if len(group) < 2:
        return
    inputs = sum(computation[name].bytes for name in one.operands if name in computation)
    outputs = one.bytes
    if one.opcode.endswith("-start"):  # it makes its operands again beside its results
        outputs = max(outputs - inputs, max((a.bytes for a in one.arrays), default=0.0))
    size = max(inputs, outputs) if kind != "all-reduce" else inputs or outputs
    key = kind, axes, len(group)
    collective = seen.setdefault(key, Collective(kind, axes, group))
    collective.bytes += times * size
    collective.count += times


def flops(computation: Computation, one: Instruction) -> float:
    """Of a matrix product or a convolution; two are a multiplication and an addition."""
    if one.opcode == "dot":
        left = _array(computation, one.operands[0])
        over = [int(n) for n in one.attribute("lhs_contracting_dims").split(",") if n]
        terms = np.prod([left.shape[i] for i in over]) if left else 1
        return 2.0 * float(np.prod(one.arrays[0].shape) * terms)
    if one.opcode == "convolution":
        return convolution(computation, one)
    return 0.0


def convolution(computation: Computation, one: Instruction) -> float:
    """2 · (outputs) · (input channels of each) · (taps of each that meet an input).

    TPU compilers write all matrix products as convolutions, and batches of them with places between
    which there are holes.
    """
    left, right = (_array(computation, name) for name in one.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text)
    if left is None or right is None or labels is None:
        return 0.0
    lhs, rhs, out = labels.groups()
    shape = dict(zip(out, one.arrays[0].shape, strict=True))
    inputs, kernel = (
        dict(zip(lhs, left.shape, strict=True)),
        dict(zip(rhs, right.shape, strict=True)),
    )
    window = one.attribute("window")
    total = 2.0 * shape["b"] * shape["f"] * kernel["i"]
    spatial = sorted(set(out) - {"b", "f"})
    for d, name in enumerate(spatial):
        part = {k: _window(window, k, d) for k in ("stride", "lhs_dilate", "rhs_dilate")}
        low = int((_part(window, "pad", d) or "0_0").split("_")[0])
        at = np.arange(shape[name])[:, None] * part["stride"] - low
        at = at + np.arange(kernel[name]) * part["rhs_dilate"]
        holes = part["lhs_dilate"]
        real = (at >= 0) & (at <= (inputs[name] - 1) * holes) & (at % holes == 0)
        total *= int(real.sum())
    return total


def _part(window: str, name: str, dimension: int) -> str:
    found = re.search(rf"\b{name}=([\w\-]+)", window)
    return found[1].split("x")[dimension] if found else ""


def _window(window: str, name: str, dimension: int) -> int:
    return int(_part(window, name, dimension) or 1)


def _array(computation: Computation, name: str) -> Array | None:
    made = computation.get(name)
    return made.arrays[0] if made is not None and made.arrays else None
