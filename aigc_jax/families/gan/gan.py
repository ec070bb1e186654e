"""Generative adversarial networks: two players, critic and generator.

Shapes: B batch, Z latent size, H height, W width, C channels, N samples.
`real_B` and `fake_B` are the critic's scores; larger means "real".
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core import config
from aigc_jax.core.conditions import class_conditions, label_of
from aigc_jax.core.errors import UserError, did_you_mean
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Batch, HealthCheck, Objective
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.gan import critic_state
from aigc_jax.ops.augment import AUGMENTATIONS, augment
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.random import fold, normal, uniform
from aigc_jax.ops.schedules import cosine_schedule
from aigc_jax.ops.spectral_norm import spectral_normalize

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

# What an example's key is folded with, for each player's latent and augmentation. The players draw
# their own, and each can tell what the other one's images were.
LATENT = {"critic": 0, "generator": 4}
AUGMENT = {"critic": (2, 3), "generator": (5, 6)}  # real and generated images
PLACE = 1  # between real and generated images

HEALTH_CHECKS = (
    HealthCheck(
        "generator/diversity",
        low=0.2,
        high=math.inf,
        records=5,
        message="the generator has collapsed, its images are nearly all the same: raise"
        " objective.r1 and objective.r2, or lower the generator's rate",
    ),
    HealthCheck(
        "critic/accuracy",
        low=0.0,
        high=0.995,
        records=10,
        message="the critic tells real from generated images without a mistake, so the generator"
        " learns nothing from it: raise objective.r1 and objective.r2, or use objective.augment",
    ),
)


@dataclasses.dataclass(frozen=True)
class GANConfig:
    loss: str = option("relativistic", choices=tuple(LOSSES))
    critic_turns: int = option(1, low=1)  # before each move of the generator
    gradient_penalty: float = option(0.0, low=0.0)  # λ (‖∇D‖ − 1)² between real and generated
    r1: float = option(0.0, low=0.0)  # γ/2 ‖∇D‖² at real images (Mescheder et al. 2018)
    r2: float = option(0.0, low=0.0)  # the same at generated images
    spectral_norm: bool = False  # of all the critic's kernels (Miyato et al. 2018)
    augment: tuple[str, ...] = ()  # what the critic sees: kinds of ops/augment.py
    augment_probability: float = option(1.0, low=0.0, high=1.0)  # after burn-in; ADA: at most
    augment_start: float = option(0.0, low=0.0, high=1.0)  # when burn-in or ADA begins
    ada_target: float = option(0.0, low=0.0, high=1.0)  # ADA: E[sign(D(real))]; 0: burn-in instead
    ada_steps: int = option(2000, low=1)  # in which ADA's probability can go from 0 to 1
    # Half a cosine, for γ and augmentation (Huang et al. 2024); 0: none.
    burn_in_steps: int = option(0, low=0)
    gamma_start: float = option(1.0, low=0.0)  # R1 and R2 begin so many times as strong

    def __post_init__(self):
        for kind in self.augment:
            if kind not in AUGMENTATIONS:
                near = did_you_mean(kind, AUGMENTATIONS)
                raise UserError(f"objective.augment has '{kind}': {near}")


@dataclasses.dataclass(frozen=True)
class GANSample(config.Sample):
    truncation: float = option(
        1.0,
        low=0.0,
        flag="Scale of the latent: below 1 less variety, often better images (Brock et al. 2019).",
    )


class GAN(Objective):
    """Critic and generator; the step lets each move in its turn.

    Args:
      config: the game.
      generator: module (z_BZ, label_B) → images (B, H, W, C), with a latent size in its config.
      critic: module (images, label_B) → scores (B,), each from its own image only.
    """

    health_checks = HEALTH_CHECKS

    def __init__(self, config: GANConfig, generator: Any, critic: Any):
        self.config, self.generator, self.critic = config, generator, critic
        self.num_classes = generator.num_classes
        self.conditions = class_conditions(self.num_classes)
        self.turns = ("critic",) * config.critic_turns + ("generator",)
        self._sample = jax.jit(self._generate)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        c, label_B = self.config, self._label(batch)
        z_BZ = jnp.zeros((batch["image"].shape[0], self.generator.config.latent))
        x = to_signed(batch["image"])
        generator, critic = jax.random.split(rng)
        params = {
            "generator": self.generator.init(generator, z_BZ, label_B)["params"],
            "critic": self.critic.init(critic, x, label_B)["params"],
        }
        key = jax.random.fold_in(rng, 2)
        critic = nn.unbox(params["critic"])
        state = critic_state.start(critic, key, c.augment_start, c.spectral_norm)
        return params, {"critic": state}

    def _label(self, batch: Batch) -> jax.Array | None:
        return batch["label"] if self.num_classes else None

    def _critic(self, params, state):
        """The critic's parameters as it uses them."""
        own = params["critic"]
        return spectral_normalize(own, state["vectors"]) if self.config.spectral_norm else own

    def _score(self, critic, x_BHWC, label_B):
        return self.critic.apply({"params": critic}, x_BHWC, label_B)

    def _fake(self, params, key_B, label_B):
        z_BZ = normal(key_B, (self.generator.config.latent,))
        return self.generator.apply({"params": params["generator"]}, z_BZ, label_B)

    def loss(self, player, params, mutables, batch, key_B, step):
        """The player's loss of `LOSSES`; the critic's with its penalties.

        Both players see real and generated images augmented, each example with its own draws; the
        penalties are of the slope at the images before that.
        """
        c = self.config
        x, label_B, weight_B = to_signed(batch["image"]), self._label(batch), batch["weight"]
        state = critic_state.begin(
            mutables["critic"], params["critic"], step,
            c.ada_target, 1 / c.ada_steps, c.augment_probability,
        )  # fmt: skip
        critic = self._critic(params, state)
        fake = self._fake(params, fold(key_B, LATENT[player]), label_B)
        probability = state["probability"]
        if not c.ada_target:
            ends = c.augment_start, c.augment_probability
            probability = cosine_schedule(*ends, c.burn_in_steps)(step)

        def scored(number: int) -> Callable[[jax.Array], jax.Array]:
            def score(at_BHWC: jax.Array) -> jax.Array:
                if c.augment:
                    at_BHWC, _ = augment(at_BHWC, fold(key_B, number), probability, c.augment)
                return self._score(critic, at_BHWC, label_B)

            return score

        score_real, score_fake = map(scored, AUGMENT[player])
        critic_loss, generator_loss = LOSSES[c.loss]
        real_B, fake_B = score_real(x), score_fake(fake)
        if player == "generator":
            loss = Mean.of(generator_loss(real_B, fake_B), weight_B)
            # The critic's images once more, from the same latents: XLA sees that it has them.
            other = self._fake(
                jax.lax.stop_gradient(params), fold(key_B, LATENT["critic"]), label_B
            )
            health = {"diversity": diversity(x, fake, other, weight_B)}
            return loss, (health, {**mutables, "critic": state})
        gamma = cosine_schedule(c.gamma_start, 1.0, c.burn_in_steps)(step)
        penalty_B, metrics = self._penalties(
            score_real, score_fake, x, fake, key_B, weight_B, gamma
        )
        metrics |= scores(real_B, fake_B, weight_B, state["middle"])
        if c.augment:
            metrics["augmented"] = Mean.of(jnp.float32(probability))
        state = critic_state.seen(state, real_B, fake_B, weight_B)
        loss = Mean.of(critic_loss(real_B, fake_B) + penalty_B, weight_B)
        return loss, (metrics, {**mutables, "critic": state})

    def _penalties(self, score_real, score_fake, x, fake, key_B, weight_B, gamma=1.0):
        c = self.config

        def squared_slope(score, at_BHWC):
            slope = jax.grad(lambda at: score(at).sum())(at_BHWC)
            return (slope**2).sum((1, 2, 3))

        penalty_B, metrics = jnp.zeros(x.shape[0]), {}
        for name, own, score, at in (("r1", c.r1, score_real, x), ("r2", c.r2, score_fake, fake)):
            if own:
                slope_B = squared_slope(score, at)
                metrics[name] = Mean.of(slope_B, weight_B)
                penalty_B += gamma * own / 2 * slope_B
        if c.gradient_penalty:
            mix = uniform(fold(key_B, PLACE))[:, None, None, None]
            slope_B = jnp.sqrt(squared_slope(score_real, x + mix * (fake - x)) + 1e-12)
            metrics["slope"] = Mean.of(slope_B, weight_B)
            penalty_B += c.gradient_penalty * (slope_B - 1) ** 2
        return penalty_B, metrics

    def evaluate(self, params, mutables, batch, key_B):
        """`loss` is the critic's on held-out images, without penalties: high where it is fooled.

        Nothing is augmented, and the vectors of the spectral norm stay as they are.
        """
        x, label_B, weight_B = to_signed(batch["image"]), self._label(batch), batch["weight"]
        critic = self._critic(params, mutables.get("critic"))
        fake, other = (self._fake(params, fold(key_B, n), label_B) for n in LATENT.values())
        real_B, fake_B = self._score(critic, x, label_B), self._score(critic, fake, label_B)
        critic_loss, generator_loss = LOSSES[self.config.loss]
        # This batch's own middle: the averaged critic may have another one than the critic.
        middle = Mean.of((real_B + fake_B) / 2, weight_B).value()
        return {
            "loss": Mean.of(critic_loss(real_B, fake_B), weight_B),
            "generator_loss": Mean.of(generator_loss(real_B, fake_B), weight_B),
            "diversity": diversity(x, fake, other, weight_B),
            **scores(real_B, fake_B, weight_B, middle),
        }

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """uint8 images (N, H, W, C)."""
        return self._sample(
            params["generator"],
            key_N,
            label_of(request.conditions),
            jnp.float32(request.options.truncation),
        )

    def _generate(self, params, key_N, label_N, truncation):
        z_NZ = truncation * normal(key_N, (self.generator.config.latent,))
        return to_bytes(self.generator.apply({"params": params}, z_NZ, label_N))


def diversity(
    x_BHWC: jax.Array, fake_BHWC: jax.Array, other_BHWC: jax.Array, weight_B: jax.Array
) -> Mean:
    """How far apart two generated images of a class are, in units of real ↔ generated.

    About 1 if the generated images are spread like the real ones; 0 if they are all the same.
    """
    apart_B, away_B = distance(fake_BHWC, other_BHWC), distance(x_BHWC, fake_BHWC)
    return Mean((apart_B * weight_B).sum(), (away_B * weight_B).sum())


def scores(
    real_B: jax.Array, fake_B: jax.Array, weight_B: jax.Array, middle: jax.Array
) -> dict[str, Mean]:
    """How well a critic tells real from generated images.

    Not every loss has a score of its own that means "undecided" (the relativistic one and
    Wasserstein's have none): a real image counts as recognised above `middle`, a generated one
    below. `accuracy` is the mean of the two.
    """
    right_B, exposed_B = real_B > middle, fake_B < middle
    return {
        "score_real": Mean.of(real_B, weight_B),
        "score_fake": Mean.of(fake_B, weight_B),
        "pairs_told_apart": Mean.of(real_B > fake_B, weight_B),
        "accuracy_real": Mean.of(right_B, weight_B),
        "accuracy_fake": Mean.of(exposed_B, weight_B),
        "accuracy": Mean.of((right_B + exposed_B.astype(jnp.float32)) / 2, weight_B),
    }


def distance(a_BHWC: jax.Array, b_BHWC: jax.Array) -> jax.Array:
    """Euclidean, (B,)."""
    return jnp.sqrt(((a_BHWC - b_BHWC) ** 2).sum((1, 2, 3)))
