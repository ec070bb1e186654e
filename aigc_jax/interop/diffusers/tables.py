"""Form of the tables for diffusers' image models, and the modules that several of them share.

Names of tensors, keys of config.json and their defaults are those of diffusers' UNet2DModel,
AutoencoderKL and DiTTransformer2DModel.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.conditions import LABEL, Condition
from aigc_jax.interop.mapping import Fields, ModelTable, TensorRule, module
from aigc_jax.interop.parameters import Shape, parameter_shapes

GetTensor = Callable[[str], np.ndarray | None]  # by name in diffusers; None: there is no such
Rows = tuple[tuple[str, str], ...]  # module of diffusers, module of ours
LIMITS = dict(blocks=64, depth=2000, width=2**17, patch_size=256, latent=4096, embedding=2**17,
              frequencies=2**16, heads=4096)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModel(ModelTable):
    """One class of diffusers.

    Attributes:
      aigc: our `model.name`.
      objective: our config section `objective`, or the start of it.
      rules: (config) → its tensors.
      shapes: (config, channels, classes) → the shapes of our parameters by path.
      read: (config.json) → fields that need more than a setting; ValueError if they have no
        equivalent.
      write: (fields) → keys of config.json that need more than a setting.
      no_effect: fields of ours that do not change the output.
      in_channels: default of the key in_channels.
      out_channels: default of the key out_channels; 0: as many as the input has.
      classes: key of the number of classes; "": it has none.
      default_classes: number of classes if the key is missing.
      from_tensors: (config, tensors) → fields that only the tensors tell.
    """

    aigc: str
    objective: Mapping[str, Any]
    rules: Callable[[Any], list[TensorRule]]
    shapes: Callable[[Any, int, int], dict[str, Shape]]
    read: Callable[[Mapping[str, Any]], Fields]
    write: Callable[[Fields], dict[str, Any]]
    no_effect: frozenset[str]
    limits: Mapping[str, int] = dataclasses.field(default_factory=lambda: LIMITS)
    in_channels: int = 3
    out_channels: int = 3
    classes: str = ""
    default_classes: int = 0
    from_tensors: Callable[[Any, GetTensor], Fields] = lambda config, get: {}

    @property
    def has_scheduler(self) -> bool:
        """Returns whether it denoises; otherwise it is an autoencoder."""
        return self.objective["name"] == "diffusion"


RESNET: Rows = (
    ("norm1", "norm_in"),
    ("conv1", "conv_in"),
    ("time_emb_proj", "condition"),
    ("norm2", "norm_out"),
    ("conv2", "conv_out"),
    ("conv_shortcut", "skip"),
)
ENDS: Rows = (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out"))


def submodules(hf: str, aigc: str, rows: Rows, layer: int | None = None) -> list[TensorRule]:
    """Returns the rules for modules within a module."""
    return [
        rule
        for hf_name, aigc_name in rows
        for rule in module(f"{hf}.{hf_name}", f"{aigc}/{aigc_name}", layer=layer)
    ]


def attention(hf: str, aigc: str, layer: int | None = None) -> list[TensorRule]:
    """Returns the rules of an attention: query, key and value are one kernel of ours."""
    rules: list[TensorRule] = []
    for i, name in enumerate("qkv"):
        rules += module(f"{hf}.to_{name}", f"{aigc}/qkv", layer=layer, part=(i, 3))
    return rules + submodules(hf, aigc, (("to_out.0", "out"),), layer)


def attention_block(hf: str, aigc: str) -> list[TensorRule]:
    return [*submodules(hf, aigc, (("group_norm", "norm"),)), *attention(hf, aigc)]


def levels(count: int, down: int, up: int, hf: str = "", aigc: str = "") -> list[TensorRule]:
    """Returns the rules of a U-Net's levels and of its middle.

    Args:
      count: number of levels.
      down: residual blocks per level on the way down.
      up: residual blocks per level on the way up.
      hf: prefix of diffusers' modules.
      aigc: prefix of ours.
    """
    rules: list[TensorRule] = []
    sides = ("down", down, lambda level: level), ("up", up, lambda level: count - 1 - level)
    for side, blocks, index in sides:
        for level in range(count):
            block = f"{hf}{side}_blocks.{index(level)}"
            for i in range(blocks):
                name = f"{aigc}{side}_{level}_{i}"
                rules += submodules(f"{block}.resnets.{i}", name, RESNET)
                rules += attention_block(f"{block}.attentions.{i}", f"{name}_attention")
            # diffusers numbers resamplers by the level that they start from.
            resampler = f"{hf}{side}_blocks.{index(level) - (side == 'down')}.{side}samplers.0"
            rules += submodules(resampler, f"{aigc}{side}_{level}", (*RESNET, ("conv", "conv")))
    middle = f"{hf}mid_block."
    rules += submodules(f"{middle}resnets.0", f"{aigc}middle", RESNET)
    rules += attention_block(f"{middle}attentions.0", f"{aigc}middle_attention")
    return rules + submodules(f"{middle}resnets.1", f"{aigc}middle_out", RESNET)


def denoiser_shapes(network: Any) -> Callable[[Any, int, int], dict[str, Shape]]:
    """Returns the function `shapes` of a table whose network denoises."""

    @functools.lru_cache(maxsize=8)
    def shapes(config: Any, channels: int, classes: int) -> dict[str, Shape]:
        # The parameters do not depend on the image's sides, for which a file may claim any length.
        levels = len(getattr(config, "channels", (0,)))
        side = getattr(config, "patch_size", 1) * 2 ** (levels - 1)
        x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        label: Any  # shapes in place of arrays
        present: Any
        time, label, present = (
            jax.ShapeDtypeStruct((1,), dtype) for dtype in (jnp.float32, jnp.int32, jnp.bool_)
        )
        conditions = {LABEL: Condition(label, present)}
        return parameter_shapes(network(config, classes).init, x, time, conditions)

    return shapes


def block_types(names: Any, known: tuple[str, ...], channels: Any) -> list[str]:
    """Returns the types of a U-Net's blocks; ValueError unless there is one per level."""
    if not isinstance(channels, (list, tuple)) or not channels or type(channels[0]) is not int:
        raise ValueError("has no list block_out_channels")
    if not isinstance(names, (list, tuple)) or len(names) != len(channels):
        raise ValueError("must name one type of block for each of block_out_channels")
    for name in names:
        if name not in known:
            raise ValueError(
                f"has blocks of the type {name!r}, but only {', '.join(known)} is supported"
            )
    return list(names)
