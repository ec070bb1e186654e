"""Generative adversarial networks: two players, critic and generator.

Shapes: B batch, Z latent size, H height, W width, C channels, N samples.
`real_B` and `fake_B` are the critic's scores; larger means "real".
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax import config
from aigc_jax.config import option
from aigc_jax.models.dcgan import Critic, Generator
from aigc_jax.objectives.base import Batch, Request
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.random import fold, normal, uniform
from aigc_jax.train.metrics import Mean

softplus, relu = jax.nn.softplus, jax.nn.relu

# name: (what the critic minimises, what the generator minimises), per example.
LOSSES = {
    # Goodfellow et al. 2014: the game as stated, and with the generator's loss that does not fade.
    "minimax": (lambda r, f: softplus(-r) + softplus(f), lambda r, f: -softplus(f)),
    "non_saturating": (lambda r, f: softplus(-r) + softplus(f), lambda r, f: softplus(-f)),
    # Lim & Ye 2017.
    "hinge": (lambda r, f: relu(1 - r) + relu(1 + f), lambda r, f: -f),
    # Mao et al. 2017.
    "least_squares": (lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2),
    # Arjovsky et al. 2017; give it a gradient penalty (Gulrajani et al. 2017).
    "wasserstein": (lambda r, f: f - r, lambda r, f: -f),
    # Jolicoeur-Martineau 2018, the pairing form of Huang et al. 2024 (R3GAN).
    "relativistic": (lambda r, f: softplus(f - r), lambda r, f: softplus(r - f)),
}


@dataclasses.dataclass(frozen=True)
class GANConfig:
    loss: str = option("relativistic", choices=tuple(LOSSES))
    critic_turns: int = option(1, low=1)  # before each move of the generator
    gradient_penalty: float = option(0.0, low=0.0)  # λ (‖∇D‖ − 1)² between real and generated
    r1: float = option(0.0, low=0.0)  # γ/2 ‖∇D‖² at real images (Mescheder et al. 2018)
    r2: float = option(0.0, low=0.0)  # the same at generated images


@dataclasses.dataclass(frozen=True)
class GANSample(config.Sample):
    label: int = option(-1, low=-1)  # one class for all; −1: all in turn
    truncation: float = option(1.0, low=0.0)  # scale of the latent


class GAN:
    """Critic and generator; the step lets each move in its turn."""

    def __init__(self, config: GANConfig, generator: Generator, critic: Critic):
        self.config, self.generator, self.critic = config, generator, critic
        self.num_classes = generator.num_classes
        self.turns = ("critic",) * config.critic_turns + ("generator",)
        self._sample = jax.jit(self._generate)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        label_B = self._label(batch)
        z_BZ = jnp.zeros((batch["image"].shape[0], self.generator.config.latent))
        x = to_signed(batch["image"])
        generator, critic = jax.random.split(rng)
        params = {
            "generator": self.generator.init(generator, z_BZ, label_B)["params"],
            "critic": self.critic.init(critic, x, label_B)["params"],
        }
        return params, {}

    def _label(self, batch: Batch) -> jax.Array | None:
        return batch["label"] if self.num_classes else None

    def _score(self, params, x_BHWC, label_B):
        return self.critic.apply({"params": params["critic"]}, x_BHWC, label_B)

    def _fake(self, params, key_B, label_B):
        z_BZ = normal(fold(key_B, 0), (self.generator.config.latent,))
        return self.generator.apply({"params": params["generator"]}, z_BZ, label_B)

    def loss(self, player, params, mutables, batch, key_B, step):
        """The player's loss of `LOSSES`; the critic's with its penalties."""
        x, label_B, weight_B = to_signed(batch["image"]), self._label(batch), batch["weight"]
        fake = self._fake(params, key_B, label_B)
        critic_loss, generator_loss = LOSSES[self.config.loss]
        real_B, fake_B = self._score(params, x, label_B), self._score(params, fake, label_B)
        if player == "generator":
            return Mean.of(generator_loss(real_B, fake_B), weight_B), ({}, mutables)
        penalty_B, metrics = self._penalties(params, x, fake, label_B, key_B, weight_B)
        metrics |= self._health(real_B, fake_B, weight_B)
        return Mean.of(critic_loss(real_B, fake_B) + penalty_B, weight_B), (metrics, mutables)

    def _health(self, real_B, fake_B, weight_B):
        return {
            "score_real": Mean.of(real_B, weight_B),
            "score_fake": Mean.of(fake_B, weight_B),
            "pairs_told_apart": Mean.of(real_B > fake_B, weight_B),
        }

    def _penalties(self, params, x, fake, label_B, key_B, weight_B):
        c = self.config

        def squared_slope(at_BHWC):
            slope = jax.grad(lambda at: self._score(params, at, label_B).sum())(at_BHWC)
            return (slope**2).sum((1, 2, 3))

        penalty_B, metrics = jnp.zeros(x.shape[0]), {}
        for name, gamma, at in (("r1", c.r1, x), ("r2", c.r2, fake)):
            if gamma:
                slope_B = squared_slope(at)
                metrics[name] = Mean.of(slope_B, weight_B)
                penalty_B += gamma / 2 * slope_B
        if c.gradient_penalty:
            mix = uniform(fold(key_B, 1))[:, None, None, None]
            slope_B = jnp.sqrt(squared_slope(x + mix * (fake - x)) + 1e-12)
            metrics["slope"] = Mean.of(slope_B, weight_B)
            penalty_B += c.gradient_penalty * (slope_B - 1) ** 2
        return penalty_B, metrics

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` is the critic's on held-out images, without penalties: high where it is fooled."""
        x, label_B, weight_B = to_signed(batch["image"]), self._label(batch), batch["weight"]
        real_B = self._score(params, x, label_B)
        fake_B = self._score(params, self._fake(params, key_B, label_B), label_B)
        critic_loss, generator_loss = LOSSES[self.config.loss]
        return {
            "loss": Mean.of(critic_loss(real_B, fake_B), weight_B),
            "generator_loss": Mean.of(generator_loss(real_B, fake_B), weight_B),
            **self._health(real_B, fake_B, weight_B),
        }

    def sample(self, params, mutables, key_N, request: Request) -> jax.Array:
        """uint8 images (N, H, W, C)."""
        return self._sample(
            params["generator"], key_N, request.label_N, jnp.float32(request.options.truncation)
        )

    def _generate(self, params, key_N, label_N, truncation):
        z_NZ = truncation * normal(key_N, (self.generator.config.latent,))
        return to_bytes(self.generator.apply({"params": params}, z_NZ, label_N))
