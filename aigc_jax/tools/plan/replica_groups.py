"""Mesh axes of the collectives of a compiled program.

XLA writes replica groups in three forms: as lists, as a transposed and reshaped iota
(`[2,4]<=[4,2]T(1,0)`), or as axes of a mesh of its own. The numbers are indices in the run's mesh.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from aigc_jax.tools.plan.hlo import Instruction

LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[^=]*?\})\}(?:,|$| )")
CUT = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" ?\{([^}]*)\}"
)


def replica_groups(instruction: Instruction, devices: int) -> np.ndarray | list[list[int]]:
    """The groups of devices of a collective, one per row; all in one group without the attribute.

    Args:
      instruction: the collective.
      devices: number of devices of the mesh.
    """
    text = instruction.text
    found = MESH.search(text)
    if found:
        return _of_mesh(*found.groups())
    found = CUT.search(text)
    if found:
        rows, sizes, order = found.groups()
        return _numbered(sizes, order).reshape(_numbers(rows))
    found = LISTS.search(text)
    if found:
        return [_numbers(row) for row in re.findall(r"\{([\d,]+)\}", found[1])]
    return np.arange(devices)[None]


def _of_mesh(sizes: str, shape: str | None, order: str | None, over: str) -> np.ndarray:
    """Groups along the axes `over` of a mesh in XLA's notation."""
    axes = dict(re.findall(r"'(\w+)'=(\d+)", sizes))
    names, lengths = list(axes), [int(n) for n in axes.values()]
    ids = _numbered(shape, order) if shape else np.arange(int(np.prod(lengths)))
    chosen = [names.index(name) for name in re.findall(r"'(\w+)'", over)]
    rest = [i for i in range(len(names)) if i not in chosen]
    count = int(np.prod([lengths[i] for i in chosen]))
    return ids.reshape(lengths).transpose(rest + chosen).reshape(-1, count)


def _numbered(sizes: str, order: str | None) -> np.ndarray:
    shape = _numbers(sizes)
    ids = np.arange(int(np.prod(shape))).reshape(shape)
    return ids.transpose(_numbers(order)).ravel() if order else ids.ravel()


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def varying_axes(group: np.ndarray | Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ.

    Args:
      group: indices in the mesh.
      mesh: sizes of its axes, the outermost first.
    """
    at = np.unravel_index(np.asarray(group, int), tuple(mesh.values()))
    return tuple(name for name, places in zip(mesh, at, strict=True) if len(set(places)) > 1)
