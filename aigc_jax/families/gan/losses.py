"""Losses of a GAN's two players; a package can register its own in `GAN_LOSSES`.

Shapes: real and fake scores of any equal shape; larger means "real".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from aigc_jax.core.registry import Registry

softplus, relu = jax.nn.softplus, jax.nn.relu
ScoreLoss = Callable[[jax.Array, jax.Array], jax.Array]  # (real, fake) → loss, elementwise


class GANLoss(NamedTuple):
    """What each player minimises, from the scores of a real and a generated example.

    Attributes:
      critic: the critic's loss.
      generator: the generator's loss.
    """

    critic: ScoreLoss
    generator: ScoreLoss


GAN_LOSSES: Registry[GANLoss] = Registry(
    "gan_loss",
    "objective.loss",
    {
        # Goodfellow et al. 2014: the minimax game, and its non-saturating form.
        "minimax": GANLoss(lambda r, f: softplus(-r) + softplus(f), lambda r, f: -softplus(f)),
        "non_saturating": GANLoss(
            lambda r, f: softplus(-r) + softplus(f), lambda r, f: softplus(-f)
        ),
        # Lim & Ye 2017.
        "hinge": GANLoss(lambda r, f: relu(1 - r) + relu(1 + f), lambda r, f: -f),
        # Mao et al. 2017.
        "least_squares": GANLoss(
            lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2
        ),
        # Arjovsky et al. 2017; to be used with a gradient penalty (Gulrajani et al. 2017).
        "wasserstein": GANLoss(lambda r, f: f - r, lambda r, f: -f),
        # Jolicoeur-Martineau 2018, in the pairing form of Huang et al. 2024 (R3GAN).
        "relativistic": GANLoss(lambda r, f: softplus(f - r), lambda r, f: softplus(r - f)),
    },
)
