"""A critic of patches (Isola et al. 2017, PatchGAN) that shows its features.

Shapes: B batch, H height, W width, C channels; h, w of the patches.
Group norm, not batch norm: an image's score never depends on its neighbours in the batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.distributed.logical_axes import with_logical_constraint
from aigc_jax.nn.layers import Conv, group_norm


class PatchCritic(nn.Module):
    """Images (B, H, W, C) in [−1, 1] → scores of patches (B, h, w), and the features of each layer.

    Attributes:
      channels: of each layer; each halves height and width.
    """

    channels: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x, features = with_logical_constraint(x_BHWC, "batch"), []
        for i, channels in enumerate(self.channels):
            axes = ("conv_in", "conv_out") if i else ("inputs", "stem")
            conv = Conv(
                channels,
                (4, 4),
                (2, 2),
                dtype=self.dtype,
                kernel_axes=axes,
                name=f"down_{i}",
            )
            x = conv(x)
            x = group_norm(channels, self.dtype, name=f"norm_{i}")(x) if i else x
            x = jax.nn.leaky_relu(x, 0.2)
            features.append(x.astype(jnp.float32))
        score = Conv(1, (3, 3), dtype=self.dtype, kernel_axes=("conv_in", "outputs"), name="score")
        score_Bhw1 = score(x)
        return score_Bhw1[..., 0].astype(jnp.float32), features
