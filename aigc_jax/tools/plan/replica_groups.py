"""Which axes of the mesh a collective of a compiled program runs over.

XLA writes the groups of devices that talk to each other in three ways: as lists, as an array of all
numbers that is transposed and cut (`[2,4]<=[4,2]T(1,0)`), or as axes of a mesh of its own. The
numbers are places in the run's mesh.
"""

import re
from collections.abc import Mapping

import numpy as np

from aigc_jax.tools.plan.hlo import Instruction

LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[^=]*?\})\}(?:,|$| )")
CUT = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" ?\{([^}]*)\}"
)


def groups(instruction: Instruction, devices: int) -> np.ndarray | list[list[int]]:
    """The groups of devices that a collective connects, each a row; all in one if it says nothing.

    Args:
      instruction: the collective.
      devices: of the mesh.
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
    """Groups along some axes of a mesh that is written out."""
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


def axes_of(group: np.ndarray | list[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh along which the devices of a group differ.

    Args:
      group: places in the mesh.
      mesh: sizes of its axes, the outermost first.
    """
    at = np.unravel_index(np.asarray(group, int), tuple(mesh.values()))
    return tuple(name for name, places in zip(mesh, at, strict=True) if len(set(places)) > 1)
