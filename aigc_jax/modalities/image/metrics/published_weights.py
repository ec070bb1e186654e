"""Weights of published feature networks as our parameters, batch norm folded in.

Names and shapes are those of the PyTorch ports: pytorch-fid's and torch-fidelity's Inception of
2015-12-05, and efficientnet_lite_pytorch's EfficientNet-Lite0.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.safetensors_file import read_safetensors_file
from aigc_jax.modalities.image.metrics import efficientnet_lite, inception
from aigc_jax.modalities.image.metrics.torch_file import read_torch

Tensors = dict[str, np.ndarray]
Params = dict[str, Any]
INCEPTION_CLASSES = 1008  # of TensorFlow's graph; torchvision's network has 1000


def read_weights(path: str) -> Tensors:
    """Returns the tensors of a safetensors file, or of one that `torch.save` wrote.

    No code of the file is run.

    Raises:
      UserError: if it is neither.
    """
    return read_safetensors_file(path) if path.endswith(".safetensors") else read_torch(path)


def inception_params(tensors: Tensors, where: str) -> Params:
    """Returns the parameters of `inception.Inception`.

    Raises:
      UserError: if the tensors are not those of the network by which FID is defined.
    """
    classes = tensors.get("fc.weight", np.empty((INCEPTION_CLASSES, 0)))
    if len(classes) != INCEPTION_CLASSES or any(name.startswith("AuxLogits") for name in tensors):
        raise UserError(
            f"{shorten(where)} has torchvision's Inception, which FID is not defined by: give the"
            " weights of pt_inception-2015-12-05"
        )
    image = np.zeros((1, inception.SIZE, inception.SIZE, 3), np.float32)
    made = jax.eval_shape(inception.Inception().init, jax.random.key(0), image)
    shapes = nn.unbox(made["params"])

    def names(path: tuple[str, ...]) -> tuple[str, str]:
        block = ".".join(path[:-1])  # without Flax's own "conv"
        return f"{block}.conv", f"{block}.bn"

    return _placed(shapes, tensors, names, inception.EPSILON, where)


def efficientnet_params(tensors: Tensors, where: str) -> Params:
    """Returns the parameters of `efficientnet_lite.EfficientNetLite0`.

    Raises:
      UserError: if the tensors are not those of the network.
    """
    image = np.zeros((1, 64, 64, 3), np.float32)
    model = efficientnet_lite.EfficientNetLite0()
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    top = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1"), "logits": ("_fc", "")}
    inside = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "project": ("_project_conv", "_bn2"),
    }

    def names(path: tuple[str, ...]) -> tuple[str, str]:
        if len(path) == 1:
            return top[path[0]]
        prefix = f"_blocks.{path[0].removeprefix('block_')}."
        conv, norm = inside[path[1]]
        return prefix + conv, prefix + norm

    return _placed(shapes, tensors, names, efficientnet_lite.EPSILON, where)


def _placed(shapes: Any, tensors: Tensors, names: Any, epsilon: float, where: str) -> Params:
    """Returns a tree like `shapes`, each {kernel, bias} from a convolution and its batch norm.

    Args:
      names: path in the tree → names of the convolution and of the batch norm ("": it has a bias).
    """

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors or tensors[name].shape != shape:
            found = tensors[name].shape if name in tensors else "missing"
            raise UserError(
                f"{shorten(where)} has other weights than this network: {shorten(name, 80)} must be"
                f" of the shape {shape}, but it is {found}"
            )
        return np.asarray(tensors[name], np.float64)

    def walk(tree: Any, path: tuple[str, ...]) -> Params:
        if "kernel" not in tree:
            return {name: walk(branch, (*path, name)) for name, branch in tree.items()}
        conv, norm = names(path)
        shape = tree["kernel"].shape
        outputs = shape[-1:]
        weight = take(f"{conv}.weight", shape[::-1] if len(shape) == 2 else _torch_shape(shape))
        kernel = weight.T if len(shape) == 2 else weight.transpose(2, 3, 1, 0)
        if not norm:
            return _floats(kernel=kernel, bias=take(f"{conv}.bias", outputs))
        scale, shift, mean, variance = (
            take(f"{norm}.{part}", outputs)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if not (variance >= 0).all():
            raise UserError(f"{shorten(where)} is damaged: {norm}.running_var is negative")
        factor = scale / np.sqrt(variance + epsilon)
        return _floats(kernel=kernel * factor, bias=shift - mean * factor)

    return walk(shapes, ())


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(height, width, in, out) → (out, in, height, width)."""
    return (shape[3], shape[2], shape[0], shape[1])


def _floats(**arrays: np.ndarray) -> Params:
    return {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}
