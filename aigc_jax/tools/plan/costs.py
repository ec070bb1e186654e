"""Costs of one run of a compiled program on one device: FLOPs, HBM bytes, collectives.

XLA's `cost_analysis` counts the body of a loop once, whatever its trip count.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from aigc_jax.tools.plan.hbm_traffic import traffic
from aigc_jax.tools.plan.hlo import Array, Computation, Instruction, Program
from aigc_jax.tools.plan.replica_groups import replica_groups, varying_axes

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
REDUCE_SCATTER_FUSION = "all-reduce-scatter"  # prefix of TPU fusions that are one


@dataclasses.dataclass
class Collective:
    """Collectives of one kind over the same devices.

    Attributes:
      kind: such as "all-gather".
      axes: mesh axes that they run over.
      group: devices of one group, as indices in the mesh.
      bytes: of the whole array on a device, summed over all runs of them in the program.
      count: number of runs.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    bytes: float = 0.0
    count: float = 0.0


@dataclasses.dataclass
class Costs:
    """Costs of one run of a program on one device.

    Attributes:
      flops: of matrix products and convolutions.
      bytes: HBM traffic.
      collectives: by kind and axes.
      kernels: number of calls of compiled kernels, whose FLOPs are not in the program.
      unbounded_loops: number of loops of unknown length; their body counts once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    kernels: float = 0.0
    unbounded_loops: int = 0


def costs(program: Program, mesh: Mapping[str, int], slices: Sequence[int] | None = None) -> Costs:
    """Costs of a program on a device.

    Args:
      program: compiled for a mesh.
      mesh: sizes of its axes.
      slices: slice number of each device of the mesh; None: one slice.
    """
    found = Costs()
    across = tuple(np.unique(np.asarray(slices or [0]), return_index=True)[1].tolist())
    seen: dict[tuple, Collective] = {}
    for computation, instruction, times in program.walk():
        pairs = [(computation, instruction), *program.inside(instruction)]
        _add_cross_slice(seen, computation, instruction, times, mesh, across)
        for inner, one in pairs:
            found.flops += times * flops(inner, one)
            kind = one.opcode.removesuffix("-start")
            if kind in KINDS and not _is_continuation(instruction, inner, one):
                scatters = _fused_scatter(instruction, one)
                _add(seen, inner, one, "reduce-scatter" if scatters else kind, times, mesh)
        found.bytes += times * traffic(program, computation, instruction)
        found.kernels += times * (instruction.opcode == "custom-call" and _is_kernel(instruction))
        if instruction.opcode == "while" and not program.trip_count(computation, instruction):
            found.unbounded_loops += 1
    found.collectives = sorted(seen.values(), key=lambda c: -c.bytes)
    return found


def _is_kernel(instruction: Instruction) -> bool:
    return bool(re.search(r'custom_call_target="(tpu_custom_call|__\w+)', instruction.text))


def _is_continuation(outer: Instruction, inner: Computation, one: Instruction) -> bool:
    """True if a collective in a fusion is a part of one that was counted at its start.

    TPUs run collectives in parts beside matrix products; each part is written as the whole
    collective inside a fusion.
    """
    if one is outer:
        return False
    name = outer.called.get("calls", "")
    done = any("AsyncCollectiveDone" in i.text for i in inner.values() if i.root)
    return done or name.startswith("async_collective_fusion")


def _add_cross_slice(
    seen: dict[tuple, Collective],
    computation: Computation,
    one: Instruction,
    times: float,
    mesh: Mapping[str, int],
    across: tuple[int, ...],
) -> None:
    """Counts transfers between slices, which TPUs send through their hosts."""
    sent = re.search(r'_xla_host_transfer_rendezvous="([a-z\-]+?)[._\d]*"', one.text)
    if one.opcode != "send" or sent is None or len(across) < 2:
        return
    size = computation[one.operands[0]].bytes
    axes = varying_axes(across, mesh)
    collective = seen.setdefault((sent[1], axes, "slices"), Collective(sent[1], axes, across))
    collective.bytes += times * size
    collective.count += times


def _fused_scatter(outer: Instruction, one: Instruction) -> bool:
    return one is not outer and outer.called.get("calls", "").startswith(REDUCE_SCATTER_FUSION)


def _add(
    seen: dict[tuple, Collective],
    computation: Computation,
    one: Instruction,
    kind: str,
    times: float,
    mesh: Mapping[str, int],
) -> None:
    """Counts a collective by the whole array: the result of a gather, the operand of a scatter."""
    rows = replica_groups(one, int(np.prod(list(mesh.values()))))
    if kind == "collective-permute":  # groups are (sender, receiver) pairs
        axes = tuple(a for a in mesh if any(a in varying_axes(pair, mesh) for pair in rows))
        group = tuple(rows[0])
    else:
        group = tuple(int(n) for n in rows[0])
        axes = varying_axes(group, mesh)
    if len(group) < 2:
        return
    inputs = sum(computation[name].bytes for name in one.operands if name in computation)
    outputs = one.bytes
    if one.opcode.endswith("-start"):  # the result includes the operands
        outputs = max(outputs - inputs, max((a.bytes for a in one.arrays), default=0.0))
    size = max(inputs, outputs) if kind != "all-reduce" else inputs or outputs
    key = kind, axes, len(group)
    collective = seen.setdefault(key, Collective(kind, axes, group))
    collective.bytes += times * size
    collective.count += times


def flops(computation: Computation, one: Instruction) -> float:
    """FLOPs of a matrix product or a convolution; a multiplication and an addition are two."""
    if one.opcode == "dot":
        left = _array(computation, one.operands[0])
        over = [int(n) for n in one.attribute("lhs_contracting_dims").split(",") if n]
        terms = np.prod([left.shape[i] for i in over]) if left else 1
        return 2.0 * float(np.prod(one.arrays[0].shape) * terms)
    if one.opcode == "convolution":
        return convolution(computation, one)
    return 0.0


def convolution(computation: Computation, one: Instruction) -> float:
    """Returns 2 · (outputs) · (input channels of each) · (kernel taps of each that meet an input).

    TPU compilers write all matrix products as convolutions, batched ones as dilated convolutions.
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
