"""EfficientNet-Lite0 for its features (Tan & Le 2019; the Lite form has no squeeze-and-excitation).

Inverted residual blocks (Sandler et al. 2018) with ReLU6 and TensorFlow's "SAME" padding, whose odd
pixel lies at the bottom right. Batch norm is folded into the convolutions.
Shapes: B batch, H height, W width, C channels.
"""

import flax.linen as nn
import jax

from aigc_jax.nn.layers import Conv, Dense
from aigc_jax.ops.convolution import depthwise

SIZE = 224  # pixels a side that it was trained on
FEATURES = 1280
EPSILON = 1e-3  # of the batch norms that were folded
STEM = 32
# Repeats, kernel, stride of the first, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Depthwise(nn.Module):
    """Each channel filtered by itself, and a bias."""

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        channels, k = x_BHWC.shape[-1], self.kernel
        init = nn.initializers.lecun_normal()
        kernel_khwC = self.param("kernel", init, (k, k, 1, channels))
        bias_C = self.param("bias", nn.initializers.zeros, (channels,))
        return depthwise(x_BHWC, kernel_khwC, self.stride) + bias_C


class Block(nn.Module):
    """Widen, filter each channel, narrow; around it a residual where the shape stays."""

    kernel: int
    stride: int
    expansion: int
    channels: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        x, channels = x_BHWC, x_BHWC.shape[-1]
        if self.expansion > 1:
            x = nn.relu6(Conv(channels * self.expansion, (1, 1), name="expand")(x))
        x = nn.relu6(Depthwise(self.kernel, self.stride, name="depthwise")(x))
        x = Conv(self.channels, (1, 1), name="project")(x)
        return x + x_BHWC if self.stride == 1 and channels == self.channels else x


class EfficientNetLite0(nn.Module):
    """Images (B, H, W, 3), as (pixel − 127) / 128 → features (B, 1280) and logits (B, 1000)."""

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu6(Conv(STEM, (3, 3), (2, 2), name="stem")(x_BHWC))
        number = 0
        for repeats, kernel, stride, expansion, channels in STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                x = Block(kernel, step, expansion, channels, name=f"block_{number}")(x)
                number += 1
        x = nn.relu6(Conv(FEATURES, (1, 1), name="head")(x))
        feature_BF = x.mean((1, 2))
        return feature_BF, Dense(1000, name="logits")(feature_BF)
