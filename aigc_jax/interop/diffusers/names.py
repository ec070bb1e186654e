"""diffusers' tensors ↔ our parameters of image networks, by pairs of module names.

PyTorch keeps kernels as (out, in) or (out, in, height, width), we as (in, out) or (height, width,
in, out). Attention's query, key and value are three modules there and one of ours, side by side.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.interop.transformers.names import Shape

# Where an axis of ours is in theirs, by the number of axes of a kernel.
AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of their tensors.

    Attributes:
      name: theirs.
      shape: theirs.
      ours: the path of our parameter.
      axes: where an axis of ours is in theirs.
      layer: which of a stack ours is; none: it is not stacked.
      part: where in ours's last axis it lies, of three alike; none: it is all of it.
    """

    name: str
    shape: Shape
    ours: str
    axes: tuple[int, ...]
    layer: int | None = None
    part: int | None = None

    def place(self, params: Mapping[str, np.ndarray]) -> np.ndarray:
        """The part of our parameters that it is."""
        whole = np.asarray(params[self.ours])
        own = whole if self.layer is None else whole[self.layer]
        return own if self.part is None else np.split(own, 3, -1)[self.part]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Modules with the same parameters.

    Attributes:
      theirs: the name.
      ours: the path; several of theirs may be copies of one of ours.
      layer: which of a stack ours is.
      part: 0, 1, 2: query, key and value.
    """

    theirs: str
    ours: str
    layer: int | None = None
    part: int | None = None

    def inner(self, *rows: tuple[str, str]) -> list["Pair"]:
        """Pairs of modules within both."""
        return [
            Pair(f"{self.theirs}.{theirs}", f"{self.ours}/{ours}", self.layer)
            for theirs, ours in rows
        ]

    def attention(self) -> list["Pair"]:
        """The modules of an attention of theirs."""
        qkv = [
            Pair(f"{self.theirs}.to_{name}", f"{self.ours}/qkv", self.layer, part)
            for part, name in enumerate("qkv")
        ]
        return [*qkv, *self.inner(("to_out.0", "out"))]


def tensors(pairs: Iterable[Pair], ours: Mapping[str, Shape], what: str) -> list[Tensor]:
    """The tensors of a model of theirs that has these parameters of ours.

    Args:
      pairs: modules; those that ours lacks are not there.
      ours: shapes by path.
      what: their model, for messages.

    Raises:
      UserError: if it has no place for one of them.
    """
    within: dict[str, list[str]] = {}
    for path in ours:
        within.setdefault(path.rpartition("/")[0], []).append(path)
    found, placed = [], set()
    for pair in pairs:
        for path in within.get(pair.ours, ()):
            leaf = path.rpartition("/")[2]
            shape = ours[path] if pair.layer is None else ours[path][1:]
            if pair.part is not None:
                shape = (*shape[:-1], shape[-1] // 3)
            axes = (0, 1) if leaf == "embedding" else AXES[len(shape)]
            theirs = tuple(shape[axes.index(axis)] for axis in range(len(shape)))
            name = f"{pair.theirs}.{LEAVES[leaf]}"
            found.append(Tensor(name, theirs, path, axes, pair.layer, pair.part))
            placed.add(path)
    for path in ours:
        if path not in placed:
            raise UserError(
                f"{what} of diffusers has no place for the parameter {shorten(path, 100)}"
            )
    return found


def fill(tensor: Tensor, array: np.ndarray, params: Mapping[str, np.ndarray]) -> None:
    """Writes their tensor to its place in our parameters, by path."""
    tensor.place(params)[...] = array.transpose(tensor.axes)


def read(tensor: Tensor, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """Their tensor, from our parameters by path."""
    return tensor.place(params).transpose(np.argsort(tensor.axes))
