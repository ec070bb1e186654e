"""A small image classifier, whose features are the space in which generated images are judged.

Shapes: B batch, H height, W width, C channels, F features, K classes.
"""

import flax.linen as nn
import jax

from aigc_jax.nn.layers import Conv, Dense
from aigc_jax.ops.convolution import downsample


class Classifier(nn.Module):
    """Images (B, H, W, C) in [−1, 1] → features (B, F) and logits (B, K)."""

    num_classes: int
    channels: tuple[int, ...] = (32, 64)
    features: int = 64

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x_BHWC
        for i, channels in enumerate(self.channels):
            axes = ("conv_in", "conv_out") if i else ("inputs", "stem")
            x = jax.nn.relu(Conv(channels, (3, 3), kernel_axes=axes, name=f"conv_{i}")(x))
            # Halve while it goes in, whatever the size: an odd last row or column is cut off.
            if min(x.shape[1:3]) >= 2:
                x = downsample(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])
        # Large images: down to at most 7×7, so that the dense layer stays small.
        while max(x.shape[1:3]) > 7:
            halves = tuple(2 if n > 7 else 1 for n in x.shape[1:3])
            x = nn.avg_pool(x, halves, halves)
        x = x.reshape(x.shape[0], -1)
        feature_BF = jax.nn.relu(Dense(self.features, name="features")(x))
        head = Dense(self.num_classes, kernel_axes=("dense_in", "outputs"), name="logits")
        return feature_BF, head(feature_BF)
