"""Three ways to train a diffusion model, seen as one: a denoiser D(x; σ).

All three are written in the coordinates of Karras et al. (2022, EDM): x = y + σ n, with y the clean
image, n standard normal. A variance-preserving or flow-matching process is the same one rescaled:
with σ² = (1 − ᾱ) / ᾱ for DDPM and σ = t / (1 − t) for flow matching, x_t = scale(σ) · x. So every
sampler works with every parameterisation.

A parameterisation says how σ is drawn in training, how a network becomes a denoiser, how errors at
σ are weighted, and which grid of σ a sampler walks down. σ has shape (B, 1, 1, 1).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Network = Callable[[jax.Array, jax.Array], jax.Array]  # (x_BHWC, time_B in 0…1000) → output


@dataclasses.dataclass(frozen=True)
class EDM:
    """Preconditioning, loss weight and schedule of EDM (Karras et al. 2022, table 1)."""

    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def draw(self, key: jax.Array) -> jax.Array:
        """σ is log-normal."""
        return jnp.exp(self.p_mean + self.p_std * jax.random.normal(key))

    def denoise(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """D = c_skip x + c_out F(c_in x, ln σ / 4), eq. 7; the time is scaled to our 0…1000."""
        norm = jnp.sqrt(sigma**2 + self.sigma_data**2)
        skip, out = self.sigma_data**2 / norm**2, sigma * self.sigma_data / norm
        time_B = 250 * jnp.log(sigma[:, 0, 0, 0])
        return skip * x + out * network(x / norm, time_B)

    def weight(self, sigma: jax.Array) -> jax.Array:
        """λ(σ) = (σ² + σ_data²) / (σ σ_data)²: every σ starts with the same error."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def grid(self, i: jax.Array, steps: jax.Array) -> jax.Array:
        """σ_i of a walk of `steps` steps, eq. 5; 0 at the end."""
        last = jnp.maximum(steps - 1, 1)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return jnp.where(i < steps, (high + i / last * (low - high)) ** self.rho, 0.0)


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """Rectified flow (Liu et al. 2023; Lipman et al. 2023): x_t = (1 − t) y + t n, v = n − y.

    t is logit-normal (Esser et al. 2024); the loss is the squared error of v.
    """

    t_mean: float = 0.0
    t_std: float = 1.0
    t_max: float = 0.999  # where sampling starts: σ = t / (1 − t) must be finite

    def draw(self, key: jax.Array) -> jax.Array:
        t = jax.nn.sigmoid(self.t_mean + self.t_std * jax.random.normal(key))
        t = jnp.clip(t, 1e-3, self.t_max)
        return t / (1 - t)

    def denoise(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """D = x_t − t v."""
        t = sigma / (1 + sigma)
        x_t = x * (1 - t)
        return x_t - t * network(x_t, 1000 * t[:, 0, 0, 0])

    def weight(self, sigma: jax.Array) -> jax.Array:
        """An error of v is an error of D divided by t."""
        return ((1 + sigma) / sigma) ** 2

    def grid(self, i: jax.Array, steps: jax.Array) -> jax.Array:
        """t falls evenly from t_max to 0."""
        t = self.t_max * (1 - i / steps)
        return t / (1 - t)


@dataclasses.dataclass(frozen=True)
class DDPM:
    """ε-prediction (Ho et al. 2020) on the cosine schedule (Nichol & Dhariwal 2021), T = 1000.

    Between the integer timesteps ln σ is interpolated, so that any σ has a time.
    """

    timesteps: int = 1000

    def log_sigmas(self) -> jax.Array:
        """ln σ of timesteps 1…T, increasing, (T,)."""
        s, t = 0.008, jnp.arange(self.timesteps + 1) / self.timesteps
        f = jnp.cos((t + s) / (1 + s) * jnp.pi / 2) ** 2
        beta = jnp.clip(1 - f[1:] / f[:-1], 0, 0.999)
        log_alpha_bar = jnp.cumsum(jnp.log1p(-beta))
        # σ² = (1 − ᾱ) / ᾱ = e^(−ln ᾱ) − 1
        return jnp.log(jnp.expm1(-log_alpha_bar)) / 2

    def draw(self, key: jax.Array) -> jax.Array:
        return jnp.exp(self.log_sigmas()[jax.random.randint(key, (), 0, self.timesteps)])

    def denoise(self, network: Network, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """D = x − σ ε(x / √(1 + σ²), t)."""
        index_B = jnp.interp(
            jnp.log(sigma[:, 0, 0, 0]), self.log_sigmas(), jnp.arange(self.timesteps)
        )
        time_B = (index_B + 1) * (1000 / self.timesteps)
        return x - sigma * network(x / jnp.sqrt(1 + sigma**2), time_B)

    def weight(self, sigma: jax.Array) -> jax.Array:
        """An error of ε is an error of D divided by σ (the "simple" loss)."""
        return 1 / sigma**2

    def grid(self, i: jax.Array, steps: jax.Array) -> jax.Array:
        """Evenly spaced timesteps from T down to 1, then 0."""
        last = jnp.maximum(steps - 1, 1)
        index = (self.timesteps - 1) * (1 - i / last)
        log_sigma = jnp.interp(index, jnp.arange(self.timesteps), self.log_sigmas())
        return jnp.where(i < steps, jnp.exp(log_sigma), 0.0)


Parameterisation = EDM | FlowMatching | DDPM
