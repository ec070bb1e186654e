"""What a table of one of diffusers' image models says, and what several of them have in common.

Names of tensors, keys of config.json and their defaults are those of diffusers' UNet2DModel,
AutoencoderKL and DiTTransformer2DModel.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.interop.diffusers.names import Pair
from aigc_jax.interop.mapping import Setting
from aigc_jax.interop.transformers.names import Shape, flat

Fields = dict[str, Any]
Get = Callable[[str], np.ndarray | None]  # one of their tensors; none: there is no such


@dataclasses.dataclass(frozen=True)
class Model:
    """One of their classes.

    Attributes:
      theirs: `_class_name`.
      ours: `model.name`.
      config: the dataclass of our section `model`.
      objective: what it is for: the section `objective` of a run of it, or the start of it.
      settings: keys of config.json that set fields.
      pairs: (config) → modules.
      init: (config, colours, classes) → what our parameters are, by shapes.
      fixed: keys of config.json with the values that are supported, the first of which is written.
      ours_fixed: fields of ours that it cannot have otherwise.
      ignored: keys of config.json that do not change what is computed.
      read: (config.json) → fields that no table can say; ValueError, in words, for what cannot be
        said in our fields.
      write: (fields) → keys that no table can say.
      needs: what must hold of the fields, `shape` and `classes` besides, in words.
      idle: fields of ours that do not change what is computed.
      buffers: tensors that are no parameters.
      colours: of the input, the key in_channels' default.
      outputs: channels, the key out_channels' default; 0: as many as of the input.
      classes: the key for the number of classes; "": it has none.
      default_classes: how many without the key.
      settle: (config, their tensors) → fields that only the tensors tell.
    """

    theirs: str
    ours: str
    config: type
    objective: Mapping[str, Any]
    settings: tuple[Setting, ...]
    pairs: Callable[[Any], list[Pair]]
    init: Callable[[Any, int, int], dict[str, Shape]]
    fixed: Mapping[str, tuple[Any, ...]]
    ours_fixed: Mapping[str, Any]
    ignored: frozenset[str]
    read: Callable[[Mapping[str, Any]], Fields]
    write: Callable[[Fields], dict[str, Any]]
    needs: tuple[tuple[str, Callable[[Fields], bool]], ...]
    idle: frozenset[str]
    buffers: tuple[str, ...] = ()
    colours: int = 3
    outputs: int = 3
    classes: str = ""
    default_classes: int = 0
    settle: Callable[[Any, Get], Fields] = lambda config, get: {}

    @property
    def denoises(self) -> bool:
        """Whether there is a schedule of noise beside it; otherwise it is an autoencoder."""
        return self.objective["name"] == "diffusion"


RESNET = (
    ("norm1", "norm_in"),
    ("conv1", "conv_in"),
    ("time_emb_proj", "condition"),
    ("norm2", "norm_out"),
    ("conv2", "conv_out"),
    ("conv_shortcut", "skip"),
)
ENDS = (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out"))


def resnet(theirs: str, ours: str) -> list[Pair]:
    return Pair(theirs, ours).inner(*RESNET)


def attention(theirs: str, ours: str) -> list[Pair]:
    pair = Pair(theirs, ours)
    return [*pair.inner(("group_norm", "norm")), *pair.attention()]


def levels(count: int, down: int, up: int, theirs: str = "", ours: str = "") -> list[Pair]:
    """The modules of so many levels with so many residual blocks, and of the middle."""
    pairs = []
    sides = ("down", down, lambda level: level), ("up", up, lambda level: count - 1 - level)
    for side, blocks, index in sides:
        for level in range(count):
            block = f"{theirs}{side}_blocks.{index(level)}"
            for i in range(blocks):
                name = f"{ours}{side}_{level}_{i}"
                pairs += resnet(f"{block}.resnets.{i}", name)
                pairs += attention(f"{block}.attentions.{i}", f"{name}_attention")
            # Theirs are numbered by the level from which they go.
            resizer = f"{theirs}{side}_blocks.{index(level) - (side == 'down')}.{side}samplers.0"
            pairs += resnet(resizer, f"{ours}{side}_{level}")
            pairs += Pair(resizer, f"{ours}{side}_{level}").inner(("conv", "conv"))
    middle = f"{theirs}mid_block."
    pairs += resnet(f"{middle}resnets.0", f"{ours}middle")
    pairs += attention(f"{middle}attentions.0", f"{ours}middle_attention")
    return pairs + resnet(f"{middle}resnets.1", f"{ours}middle_out")


def denoiser_init(network: Any) -> Callable[[Any, int, int], dict[str, Shape]]:
    @functools.lru_cache(maxsize=8)
    def init(config: Any, colours: int, classes: int) -> dict[str, Shape]:
        # The parameters do not depend on the sides, which a file may claim to be of any length.
        levels = len(getattr(config, "channels", (0,)))
        side = getattr(config, "patch_size", 1) * 2 ** (levels - 1)
        x = jax.ShapeDtypeStruct((1, side, side, colours), jnp.float32)
        time, label = (jax.ShapeDtypeStruct((1,), t) for t in (jnp.float32, jnp.int32))
        made = jax.eval_shape(network(config, classes).init, jax.random.key(0), x, time, label)
        return {path: leaf.shape for path, leaf in flat(nn.unbox(made["params"])).items()}

    return init


def types(names: Any, known: tuple[str, ...], channels: Any) -> list[str]:
    if not isinstance(channels, (list, tuple)) or not channels or type(channels[0]) is not int:
        raise ValueError("has no list block_out_channels")
    if not isinstance(names, (list, tuple)) or len(names) != len(channels):
        raise ValueError("must name one type of block for each of block_out_channels")
    for name in names:
        if name not in known:
            raise ValueError(
                f"has blocks of the type {name!r}, but only {', '.join(known)} will do"
            )
    return list(names)
