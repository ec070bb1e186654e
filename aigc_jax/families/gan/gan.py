"""Generative adversarial networks: two players, critic and generator.

Shapes: B batch, Z latent size, N samples; examples (B, …) of any rank, such as (B, H, W, C).
`real_B` and `fake_B` are the critic's scores; larger means "real".
"""

import dataclasses
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core import config
from aigc_jax.core.conditions import Conditions, ConditionSpec, conditions_of
from aigc_jax.core.errors import UserError, did_you_mean
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.gan import critic_state
from aigc_jax.families.gan.losses import GAN_LOSSES
from aigc_jax.families.gan.metrics import HEALTH_CHECKS, diversity, score_metrics
from aigc_jax.families.gan.penalties import Score, gradient_penalties
from aigc_jax.ops.augment import AUGMENTATIONS, augment
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.random import fold, normal, uniform
from aigc_jax.ops.schedules import cosine_schedule
from aigc_jax.ops.spectral_norm import spectral_normalize

# Folded into an example's key, for each player's latent and augmentation of real and generated
# examples. The players draw their own, and each can reproduce what the other one's examples were.
LATENT = {"critic": 0, "generator": 4}
AUGMENT = {"critic": (2, 3), "generator": (5, 6)}
MIX = 1  # of real and generated examples


@dataclasses.dataclass(frozen=True)
class GANConfig:
    """The section `objective` of a GAN."""

    loss: str = option("relativistic", choices=GAN_LOSSES)
    critic_turns: int = option(1, low=1)  # before each turn of the generator
    gradient_penalty: float = option(0.0, low=0.0)  # λ (‖∇D‖ − 1)² between real and generated
    r1: float = option(0.0, low=0.0)  # γ/2 ‖∇D‖² at real examples (Mescheder et al. 2018)
    r2: float = option(0.0, low=0.0)  # the same at generated examples
    spectral_norm: bool = False  # of all the critic's kernels (Miyato et al. 2018)
    augment: tuple[str, ...] = ()  # of what the critic sees: kinds of ops/augment.py
    augment_probability: float = option(1.0, low=0.0, high=1.0)  # after burn-in; ADA: at most
    augment_start: float = option(0.0, low=0.0, high=1.0)  # when burn-in or ADA begins
    ada_target: float = option(0.0, low=0.0, high=1.0)  # ADA: E[sign(D(real))]; 0: burn-in instead
    ada_steps: int = option(2000, low=1)  # in which ADA's probability can rise from 0 to 1
    # Half a cosine, for γ and augmentation (Huang et al. 2024); 0: none.
    burn_in_steps: int = option(0, low=0)
    gamma_start: float = option(1.0, low=0.0)  # factor of R1 and R2 when burn-in begins

    def __post_init__(self):
        for kind in self.augment:
            if kind not in AUGMENTATIONS:
                near = did_you_mean(kind, AUGMENTATIONS)
                raise UserError(f"objective.augment has '{kind}': {near}")


@dataclasses.dataclass(frozen=True)
class GANSample(config.Sample):
    """The section `sample` of a GAN."""

    truncation: float = option(
        1.0,
        low=0.0,
        flag="Scale of the latent: below 1 less variety, often better images (Brock et al. 2019).",
    )


class Generator(Protocol):
    """A Flax module (latents (B, Z), conditions) → examples (B, …) in [−1, 1]."""

    config: Any

    def init(self, rng: jax.Array, z_BZ: jax.Array, conditions: Conditions) -> Any: ...

    def apply(self, variables: Any, z_BZ: jax.Array, conditions: Conditions) -> Any: ...


class Critic(Protocol):
    """A Flax module (examples (B, …), conditions) → scores (B,), each of its own example only."""

    def init(self, rng: jax.Array, x: jax.Array, conditions: Conditions) -> Any: ...

    def apply(self, variables: Any, x: jax.Array, conditions: Conditions) -> Any: ...


class GAN(Objective):
    """Critic and generator, each updated in its own turns.

    Args:
      config: its constants.
      generator: its config holds `latent`, the size Z of its input.
      critic: scores examples.
      conditions: what both players are given.
      field: of a batch, which is modelled.
    """

    health_checks = HEALTH_CHECKS

    def __init__(
        self,
        config: GANConfig,
        generator: Generator,
        critic: Critic,
        conditions: dict[str, ConditionSpec] | None = None,
        field: str = "image",
    ):
        self.config, self.generator, self.critic = config, generator, critic
        self.conditions, self.field = conditions or {}, field
        self.latent_size: int = generator.config.latent
        self.turns = ("critic",) * config.critic_turns + ("generator",)
        self._sample = jax.jit(self._generate)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        c, given = self.config, conditions_of(batch, self.conditions)
        x = to_signed(batch[self.field])
        z_BZ = jnp.zeros((x.shape[0], self.latent_size))
        generator, critic = jax.random.split(rng)
        params = {
            "generator": self.generator.init(generator, z_BZ, given)["params"],
            "critic": self.critic.init(critic, x, given)["params"],
        }
        key = jax.random.fold_in(rng, 2)
        own = nn.unbox(params["critic"])
        state = critic_state.init_state(own, key, c.augment_start, c.spectral_norm)
        return params, {"critic": state}

    def loss(
        self,
        player: str,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, Mutables]]:
        """The player's loss of `GAN_LOSSES`; the critic's with its penalties.

        Both players see real and generated examples augmented, each example with its own draws; the
        penalties are of the gradient at the examples before that.
        """
        c, real, weight_B = self.config, to_signed(batch[self.field]), batch["weight"]
        given = conditions_of(batch, self.conditions)
        state = critic_state.begin_step(
            mutables["critic"],
            params["critic"],
            step,
            target=c.ada_target,
            speed=1 / c.ada_steps,
            limit=c.augment_probability,
        )
        critic = self._critic_params(params, state)
        fake = self._fake(params, fold(key_B, LATENT[player]), given)
        probability = self._augment_probability(state, step)
        score_real, score_fake = (
            self._augmented_score(critic, given, fold(key_B, number), probability)
            for number in AUGMENT[player]
        )
        real_B, fake_B = score_real(real), score_fake(fake)
        loss = GAN_LOSSES[c.loss]
        if player == "generator":
            # The critic's examples again, from the same latents: XLA reuses them.
            other = self._fake(jax.lax.stop_gradient(params), fold(key_B, LATENT["critic"]), given)
            health = {"diversity": diversity(real, fake, other, weight_B)}
            own = Mean.of(loss.generator(real_B, fake_B), weight_B)
            return own, (health, {**mutables, "critic": state})
        gamma = cosine_schedule(c.gamma_start, 1.0, c.burn_in_steps)(step)
        mix_B = uniform(fold(key_B, MIX))
        penalty_B, metrics = gradient_penalties(
            c, score_real, score_fake, real, fake, mix_B, weight_B, gamma
        )
        boundary = state["decision_boundary"]
        metrics = {**metrics, **score_metrics(real_B, fake_B, weight_B, boundary)}
        if c.augment:
            metrics["augment_probability"] = Mean.of(jnp.float32(probability))
        state = critic_state.update(state, real_B, fake_B, weight_B)
        own = Mean.of(loss.critic(real_B, fake_B) + penalty_B, weight_B)
        return own, (metrics, {**mutables, "critic": state})

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """`loss` is the critic's on held-out examples without penalties: high where it is fooled.

        Nothing is augmented, and the vectors of the spectral norm stay as they are.
        """
        real, weight_B = to_signed(batch[self.field]), batch["weight"]
        given = conditions_of(batch, self.conditions)
        critic = self._critic_params(params, mutables.get("critic", {}))
        fake, other = (self._fake(params, fold(key_B, n), given) for n in LATENT.values())
        real_B, fake_B = (self._score(critic, x, given) for x in (real, fake))
        loss = GAN_LOSSES[self.config.loss]
        # This batch's own boundary: the averaged critic may have another one than the critic.
        boundary = Mean.of((real_B + fake_B) / 2, weight_B).value()
        return {
            "loss": Mean.of(loss.critic(real_B, fake_B), weight_B),
            "generator_loss": Mean.of(loss.generator(real_B, fake_B), weight_B),
            "diversity": diversity(real, fake, other, weight_B),
            **score_metrics(real_B, fake_B, weight_B, boundary),
        }

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """uint8 examples (N, …)."""
        truncation = jnp.float32(request.options.truncation)
        return self._sample(params["generator"], key_N, request.conditions, truncation)

    def _generate(
        self, params: Any, key_N: jax.Array, conditions: Conditions, truncation: jax.Array
    ) -> jax.Array:
        z_NZ = truncation * normal(key_N, (self.latent_size,))
        return to_bytes(self.generator.apply({"params": params}, z_NZ, conditions))

    def _critic_params(self, params: Params, state: critic_state.State) -> Any:
        """The critic's parameters as it uses them: spectrally normalised if asked."""
        own = params["critic"]
        return spectral_normalize(own, state["vectors"]) if self.config.spectral_norm else own

    def _score(self, critic: Any, x: jax.Array, conditions: Conditions) -> jax.Array:
        return self.critic.apply({"params": critic}, x, conditions)

    def _fake(self, params: Params, key_B: jax.Array, conditions: Conditions) -> jax.Array:
        z_BZ = normal(key_B, (self.latent_size,))
        return self.generator.apply({"params": params["generator"]}, z_BZ, conditions)

    def _augment_probability(self, state: critic_state.State, step: jax.Array) -> jax.Array:
        c = self.config
        if c.ada_target:
            return state["probability"]
        schedule = cosine_schedule(c.augment_start, c.augment_probability, c.burn_in_steps)
        return jnp.asarray(schedule(step))

    def _augmented_score(
        self, critic: Any, conditions: Conditions, key_B: jax.Array, probability: jax.Array
    ) -> Score:
        """Examples (B, …) → scores (B,), of the examples augmented with these keys."""

        def score(x: jax.Array) -> jax.Array:
            if self.config.augment:
                x, _ = augment(x, key_B, probability, self.config.augment)
            return self._score(critic, x, conditions)

        return score
