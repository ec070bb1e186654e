"""Parameters ↔ tensors of another library, by a table's tensor rules.

Parameters are a tree of arrays as a Flax module's `init` makes it; the path of a leaf is its keys
joined by slashes (`flax.traverse_util.flatten_dict(…, sep="/")`). PyTorch keeps kernels as
(out, in, *window), we as (*window, in, out).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.files import check_memory
from aigc_jax.interop.mapping import TensorRule

Shape = tuple[int, ...]


def parameter_shapes(init: Callable[..., Any], *args: Any) -> dict[str, Shape]:
    """Returns the shapes of a module's parameters by path, without computing them.

    Args:
      init: of a Flax module.
      args: of `init`, behind the key.
    """
    variables = nn.unbox(jax.eval_shape(init, jax.random.key(0), *args))
    leaves = flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


@dataclasses.dataclass(frozen=True)
class BoundTensor:
    """A tensor of the library for parameters of known shapes.

    Attributes:
      name: in the library.
      shape: in the library.
      rule: its row of the table.
      layer: index into stacked parameters of ours; None: they are not stacked.
      heads: number of heads whose rows are stored in rotary pairs; 0: none are.
    """

    name: str
    shape: Shape
    rule: TensorRule
    layer: int | None
    heads: int = 0


def bind(
    rules: Iterable[TensorRule],
    shapes: Mapping[str, Shape],
    what: str,
    fields: Mapping[str, Any] | None = None,
) -> list[BoundTensor]:
    """Returns the tensors that a model of the library has for these parameters of ours.

    Args:
      rules: those whose parameters are not there are left out.
      shapes: of our parameters, by path.
      what: the library's model, for messages.
      fields: of our config, where rules refer to them.

    Raises:
      UserError: if no rule covers one of the parameters.
    """
    bound: list[BoundTensor] = []
    covered: set[str] = set()
    for rule in rules:
        parts = [shapes[path] for path in rule.aigc if path in shapes]
        if not parts:
            continue
        covered |= set(rule.aigc)
        stacked = rule.stacked or rule.layer is not None
        inner = parts[0][1:] if stacked else parts[0]
        width = sum(part[-1] for part in parts) // (rule.part[1] if rule.part else 1)
        shape = _to_hf_order((*inner[:-1], width)) if rule.transposed else (*inner[:-1], width)
        heads = fields[rule.rotary_heads] if rule.rotary_heads and fields else 0
        layers = range(parts[0][0]) if rule.stacked else (rule.layer,)
        bound += [BoundTensor(rule.hf.format(layer=i), shape, rule, i, heads) for i in layers]
    for path in shapes:
        if path not in covered:
            raise UserError(f"{what} has no tensor for the parameter {shorten(path, 100)}")
    return bound


def _to_hf_order(axes: Sequence[int]) -> tuple[int, ...]:
    """(*window, in, out) → (out, in, *window)."""
    *window, inputs, outputs = axes
    return (outputs, inputs, *window)


def _slices(tensor: BoundTensor, params: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Views of our parameters that the tensor consists of, in the order of its last axis."""
    for path in tensor.rule.aigc:
        array = params[path]
        array = array if tensor.layer is None else array[tensor.layer]
        if tensor.rule.part is not None:
            i, n = tensor.rule.part
            array = np.split(array, n, -1)[i]
        yield array


def _swap_rotary(array: np.ndarray, heads: int, blocks: tuple[int, int]) -> np.ndarray:
    """Reorders the rows of each head, seen as a matrix of `blocks`, by transposing the matrix."""
    rows = array.reshape(heads, *blocks, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)


def import_tensor(tensor: BoundTensor, array: np.ndarray, params: Mapping[str, np.ndarray]) -> None:
    """Writes a tensor of the library into our parameters, by path."""
    if tensor.heads:
        array = _swap_rotary(array, tensor.heads, (len(array) // tensor.heads // 2, 2))
    if tensor.rule.transposed:
        array = array.transpose(np.argsort(_to_hf_order(range(array.ndim))))
    start = 0
    for part in _slices(tensor, params):
        end = start + part.shape[-1]
        part[...] = array[..., start:end]
        start = end


def export_tensor(tensor: BoundTensor, params: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns a tensor of the library from our parameters, by path."""
    parts = [np.asarray(part) for part in _slices(tensor, params)]
    array = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
    if tensor.rule.transposed:
        array = array.transpose(_to_hf_order(range(array.ndim)))
    if tensor.heads:
        array = _swap_rotary(array, tensor.heads, (2, len(array) // tensor.heads // 2))
    return array


def import_params(
    tensors: Sequence[BoundTensor],
    shapes: Mapping[str, Shape],
    stored: Mapping[str, Shape],
    read: Callable[[str], np.ndarray],
    where: str,
) -> dict[str, Any]:
    """Returns our parameters, float32, from tensors that are read one at a time.

    Args:
      tensors: what `bind` gives.
      shapes: of our parameters, by path.
      stored: shapes of the tensors that there are, by name.
      read: one of them by name.
      where: file or folder, for messages.

    Raises:
      UserError: if one is missing or of another shape; nothing has been read then.
    """
    for tensor in tensors:
        if tensor.name not in stored:
            raise UserError(f"{shorten(where)} lacks the tensor {tensor.name}: is it complete?")
        if stored[tensor.name] != tensor.shape:
            raise UserError(
                f"{shorten(where)} has {tensor.name} in the shape"
                f" {shorten(stored[tensor.name], 60)}, but its settings ask for"
                f" {shorten(tensor.shape, 60)}"
            )
    check_memory(4 * sum(map(math.prod, shapes.values())), f"the model in {shorten(where)}")
    params = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for tensor in tensors:
        import_tensor(tensor, read(tensor.name), params)
    return unflatten_dict(params, sep="/")
