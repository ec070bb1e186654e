"""The critic of a VQGAN: its own loss, and what it adds to the autoencoder's (Esser et al. 2021).

Shapes: B batch; examples (B, …, C) in [−1, 1] of any rank.
"""

from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Params
from aigc_jax.families.gan.losses import GAN_LOSSES
from aigc_jax.families.vq.config import RECONSTRUCTION_ERRORS, VQConfig
from aigc_jax.nn.patch_critic import PatchCritic
from aigc_jax.ops.per_example import mean_per_example, squared_norm_per_example

MAX_STRENGTH = 1e4  # of the adaptive weight


class Adversary:
    """A critic of patches beside an autoencoder.

    Args:
      config: of the autoencoder.
      dtype: of the computation.
    """

    def __init__(self, config: VQConfig, dtype: jnp.dtype):
        self.config = config
        self.network = PatchCritic(config.critic_channels, dtype)

    def init(self, rng: jax.Array, x: jax.Array) -> Any:
        """The critic's parameters."""
        return self.network.init(rng, x)["params"]

    def score(self, params: Params, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Scores of patches, and the critic's features."""
        found: Any = self.network.apply({"params": params["critic"]}, x)
        return found

    def critic_loss(
        self,
        params: Params,
        x: jax.Array,
        decoded: jax.Array,
        weight_B: jax.Array,
        step: jax.Array,
    ) -> Mean:
        """The critic's loss; 0 before step `critic_start`."""
        scores = self.score(params, x)[0], self.score(params, decoded)[0]
        loss_B = mean_per_example(GAN_LOSSES[self.config.critic_loss].critic(*scores))
        return Mean.of(jnp.where(step >= self.config.critic_start, loss_B, 0.0), weight_B)

    def model_loss(
        self, params: Params, x: jax.Array, decoded: jax.Array, weight_B: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """What the critic adds to the autoencoder's loss (B,), and metrics.

        Features of examples and decoded examples are compared layer by layer (Larsen et al. 2016).
        The adaptive weight is that of Esser et al. (2021, equation 7), but at the decoded example
        instead of at the last layer, and for each example, so it does not depend on how a batch is
        cut.
        """
        c, loss = self.config, GAN_LOSSES[self.config.critic_loss]
        real_scores, real_features = self.score(params, x)

        def adversarial(y: jax.Array) -> tuple[jax.Array, tuple[jax.Array, list[jax.Array]]]:
            scores, features = self.score(params, y)
            return mean_per_example(loss.generator(real_scores, scores)), (scores, features)

        adversarial_B, (scores, features) = adversarial(decoded)
        distances = [
            mean_per_example(jnp.abs(a - b)) for a, b in zip(real_features, features, strict=True)
        ]
        feature_B = jnp.asarray(sum(distances)) / len(distances)
        strength_B = jnp.ones(len(x))
        if c.adaptive_critic_weight:
            error = RECONSTRUCTION_ERRORS[c.reconstruction_error]
            at = jax.lax.stop_gradient(decoded)
            strength_B = gradient_ratio(
                jax.grad(lambda y: mean_per_example(error(y, x)).sum())(at),
                jax.grad(lambda y: adversarial(y)[0].sum())(at),
            )
        metrics = {
            "adversarial": Mean.of(adversarial_B, weight_B),
            "features": Mean.of(feature_B, weight_B),
            "critic_strength": Mean.of(strength_B, weight_B),
            "score_real": Mean.of(mean_per_example(real_scores), weight_B),
            "score_fake": Mean.of(mean_per_example(scores), weight_B),
        }
        return c.critic_weight * strength_B * adversarial_B + c.feature_weight * feature_B, metrics


def gradient_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """The size of gradient `a` over that of `b` for each example, (B, …) → (B,), at most 10⁴."""
    values = a[0].size
    # Both are of size 1 / number of values, which must not vanish beside the guard against 0.
    size_a, size_b = (jnp.sqrt(squared_norm_per_example(g) / values) * values for g in (a, b))
    return jax.lax.stop_gradient(jnp.minimum(size_a / (size_b + 1e-4), MAX_STRENGTH))
