"""Patch critic (PatchGAN, Isola et al. 2017) that also returns its features.

Shapes: B batch, … one or more spatial axes, such as H, W; …' those of the patches; C channels.
It uses group norm instead of batch norm, so that the score of an example does not depend on the
rest of the batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.conv_blocks import per_axis
from aigc_jax.nn.layers import Conv, make_group_norm


class PatchCritic(nn.Module):
    """Maps examples (B, …, C) in [−1, 1] to scores of patches (B, …') and features of each layer.

    Attributes:
      channels: channels of each layer; each layer halves the spatial axes.
      dtype: dtype of the computation.
    """

    channels: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x, features = with_logical_constraint(x, "batch"), []
        for i, channels in enumerate(self.channels):
            axes = ("conv_in", "conv_out") if i else ("inputs", "stem")
            x = Conv(
                channels,
                per_axis(x, 4),
                per_axis(x, 2),
                dtype=self.dtype,
                kernel_axes=axes,
                name=f"down_{i}",
            )(x)
            x = make_group_norm(channels, self.dtype, name=f"norm_{i}")(x) if i else x
            x = jax.nn.leaky_relu(x, 0.2)
            features.append(x.astype(jnp.float32))
        axes = ("conv_in", "outputs")
        score = Conv(1, per_axis(x, 3), dtype=self.dtype, kernel_axes=axes, name="score")
        return score(x)[..., 0].astype(jnp.float32), features
