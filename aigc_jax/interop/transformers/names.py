"""Their tensors ↔ our parameters, by an architecture's table of weights.

Parameters are a tree of arrays as `Transformer.init` makes it, those of the layers stacked; a
leaf's path is its keys joined by slashes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.files import check_memory
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.interop.mapping import Architecture, Weight

Shape = tuple[int, ...]
Put = Callable[[Any, np.ndarray, Mapping[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of their tensors.

    Attributes:
      name: theirs.
      shape: theirs.
      weight: its row of the table.
      layer: the layer that it belongs to; none: to no layer.
    """

    name: str
    shape: Shape
    weight: Weight
    layer: int | None


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The leaves of a tree by path."""
    leaves = {}
    for key, value in tree.items():
        name = f"{path}{key}"
        leaves |= flat(value, f"{name}/") if isinstance(value, Mapping) else {name: value}
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with these leaves."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *above, last = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), above, tree)[last] = value
    return tree


def shapes(config: TransformerConfig) -> dict[str, Shape]:
    """The parameters that a model of this config has, by path.

    Args:
      config: with `vocab_size` and `context` given.
    """
    return dict(_shapes(dataclasses.replace(config, lora_rank=0)))


@functools.lru_cache(maxsize=8)
def _shapes(config: TransformerConfig) -> tuple[tuple[str, Shape], ...]:
    model = Transformer(config, config.vocab_size, config.context)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    made = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return tuple((path, leaf.shape) for path, leaf in flat(nn.unbox(made["params"])).items())


def tensors(arch: Architecture, ours: Mapping[str, Shape]) -> list[Tensor]:
    """The tensors of a model of theirs that has these parameters of ours.

    Raises:
      UserError: if the architecture has no place for one of them.
    """
    found, placed = [], set()
    for weight in arch.weights:
        parts = [ours[path] for path in weight.ours if path in ours]
        if not parts:
            continue
        placed |= set(weight.ours)
        first, *_ = parts
        inner = first[1:] if weight.stacked else first
        shape = (*inner[:-1], sum(part[-1] for part in parts))
        shape = shape[::-1] if weight.transposed else shape
        layers = range(first[0]) if weight.stacked else (None,)
        found += [Tensor(weight.theirs.format(layer=i), shape, weight, i) for i in layers]
    for path in ours:
        if path not in placed:
            raise UserError(f"{arch.name} has no place for the parameter {shorten(path, 100)}")
    return found


def _parts(tensor: Tensor, params: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """The arrays of ours that the tensor consists of, one after the other in its last axis."""
    for path in tensor.weight.ours:
        whole = params[path]
        yield whole if tensor.layer is None else whole[tensor.layer]


def fill(tensor: Tensor, array: np.ndarray, params: Mapping[str, np.ndarray]) -> None:
    """Writes their tensor to its places in our parameters, by path."""
    array = array.T if tensor.weight.transposed else array
    start = 0
    for part in _parts(tensor, params):
        end = start + part.shape[-1]
        part[...] = array[..., start:end]
        start = end


def gather(
    wanted: Sequence[Any],
    ours: Mapping[str, Shape],
    found: Mapping[str, Shape],
    get: Callable[[str], np.ndarray],
    where: str,
    put: Put = fill,
) -> dict[str, Any]:
    """Our parameters, float32, from tensors that are got one at a time.

    Args:
      wanted: their tensors.
      ours: the shape of each parameter, by path.
      found: the shape of each of their tensors.
      get: reads one of them.
      where: what holds them, for messages.
      put: writes one to its places in our parameters.

    Raises:
      UserError: if one is missing or of another shape; nothing is read then.
    """
    for tensor in wanted:
        if tensor.name not in found:
            raise UserError(f"{shorten(where)} lacks the tensor {tensor.name}: is it whole?")
        if found[tensor.name] != tensor.shape:
            raise UserError(
                f"{shorten(where)} has {tensor.name} in the shape"
                f" {shorten(found[tensor.name], 60)},"
                f" but its settings ask for {shorten(tensor.shape, 60)}"
            )
    check_memory(4 * sum(map(math.prod, ours.values())), f"the model in {shorten(where)}")
    params = {path: np.empty(shape, np.float32) for path, shape in ours.items()}
    for tensor in wanted:
        put(tensor, get(tensor.name), params)
    return nested(params)


def read(tensor: Tensor, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """Their tensor, from our parameters by path."""
    parts = [np.asarray(part) for part in _parts(tensor, params)]
    array = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
    return array.T if tensor.weight.transposed else array
