"""The config of a vector-quantised autoencoder, and the reconstruction errors that it can name."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.core import config
from aigc_jax.core.fields import option
from aigc_jax.core.registry import Registry
from aigc_jax.families.gan.losses import GAN_LOSSES
from aigc_jax.families.vq.quantizers import QUANTIZERS

# (decoded, target) → error, elementwise, of values in [−1, 1].
RECONSTRUCTION_ERRORS: Registry[Callable[[jax.Array, jax.Array], jax.Array]] = Registry(
    "reconstruction_error",
    "objective.reconstruction_error",
    {"squared": lambda x, y: (x - y) ** 2, "absolute": lambda x, y: jnp.abs(x - y)},
)


@dataclasses.dataclass(frozen=True)
class VQConfig:
    """The section `objective` of a vector-quantised autoencoder."""

    quantizer: str = option("fsq", choices=QUANTIZERS)
    levels: tuple[int, ...] = option((8, 5, 5, 5), low=2, nonempty=True)  # fsq: their product is K
    num_codes: int = option(512, low=2)  # vq: K
    code_dim: int = option(8, low=1)  # vq: size of a code's vector
    l2_normalize: bool = True  # vq: vectors of length 1 (Yu et al. 2022)
    # vq: share of an equal share of all vectors, below which a code is moved; 0: never.
    dead_code_threshold: float = option(0.1, low=0.0, high=1.0)
    commitment: float = option(0.25, low=0.0)  # vq: weight of keeping the encoder near its codes
    decay: float = option(0.99, low=0.0, high=1.0)  # of codes' sums and counts, per step
    codes_per_position: int = option(1, low=1)  # product quantisation with one codebook
    reconstruction_error: str = option("squared", choices=RECONSTRUCTION_ERRORS)
    critic_weight: float = option(0.0, low=0.0)  # VQGAN: of the adversarial loss; 0: no critic
    critic_loss: str = option("hinge", choices=GAN_LOSSES)
    critic_channels: tuple[int, ...] = option((32, 64), low=1, nonempty=True)  # ÷ 2 at each
    critic_start: int = option(0, low=0)  # the first step with a critic
    # Scales the adversarial loss to a gradient as large as that of the reconstruction error.
    adaptive_critic_weight: bool = True
    feature_weight: float = option(1.0, low=0.0)  # of the difference in the critic's features


@dataclasses.dataclass(frozen=True)
class VQSample(config.Sample):
    """The section `sample`: what every family has."""
