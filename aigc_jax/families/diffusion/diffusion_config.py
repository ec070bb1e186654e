"""The config and the sampling options of diffusion models."""

import dataclasses

from aigc_jax.core import config
from aigc_jax.core.fields import option
from aigc_jax.families.diffusion.noise_distributions import NOISE_DISTRIBUTIONS
from aigc_jax.families.diffusion.noise_schedules import NOISE_SCHEDULES
from aigc_jax.families.diffusion.preconditioning import PREDICTIONS, WEIGHTINGS
from aigc_jax.families.diffusion.sampler_steps import SAMPLERS
from aigc_jax.families.diffusion.sigma_schedules import SIGMA_SCHEDULES
from aigc_jax.ops.augment import AUGMENTATIONS

GEOMETRY = ("flip", "rotate90", "translate", "scale", "rotate", "anisotropy")


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """`auto`: as the prediction was published, see `preconditioning.DEFAULTS`."""

    prediction: str = option("edm", choices=PREDICTIONS)
    schedule: str = option("auto", choices=NOISE_SCHEDULES)
    noise_distribution: str = option("auto", choices=NOISE_DISTRIBUTIONS)  # of σ in training
    weighting: str = option("uniform", choices=WEIGHTINGS)
    condition_dropout: float = option(0.1, low=0.0, high=1.0)  # for classifier-free guidance
    sigma_data: float = option(0.5, low=1e-6)  # edm: standard deviation of the data
    p_mean: float = -1.2  # log_normal: mean of ln σ …
    p_std: float = option(1.2, low=1e-6)  # … and its standard deviation
    t_mean: float = 0.0  # logit_normal: the same for the logit of t = σ / (1 + σ)
    t_std: float = option(1.0, low=1e-6)
    sigma_min: float = option(0.002, low=1e-9)  # edm: where sampling ends …
    sigma_max: float = option(80.0, low=1e-6)  # … and starts
    beta_start: float = option(1e-4, low=1e-9, high=0.999)  # linear, scaled_linear: the first β …
    beta_end: float = option(0.02, low=1e-9, high=0.999)  # … and the last
    min_snr_gamma: float = option(5.0, low=1e-6)
    augment: float = option(0.0, low=0.0, high=1.0)  # probability of each; a condition, too
    augment_kinds: tuple[str, ...] = option(GEOMETRY, choices=AUGMENTATIONS, nonempty=True)
    eval_draws: int = option(8, low=1, resumable=True)  # noise levels per held-out example
    # Steps of the ODE for eval.likelihood_examples.
    likelihood_steps: int = option(64, low=1, resumable=True)


@dataclasses.dataclass(frozen=True)
class DiffusionSample(config.Sample):
    sampler: str = option("heun", choices=SAMPLERS)
    steps: int = option(18, low=1)
    sigma_schedule: str = option("auto", choices=SIGMA_SCHEDULES)
    rho: float = option(7.0, low=1.0)  # karras: above 1 more steps at low noise
    shift: float = option(1.0, low=1e-3)  # flow: above 1 more steps at high noise
    guidance: float = option(1.0, low=0.0)  # 1: the conditional model; 0: the unconditional one
    guidance_low: float = option(0.0, low=0.0)  # guidance only above this σ …
    guidance_high: float = option(0.0, low=0.0)  # … and up to this one; 0: no bound
    guidance_workdir: str = ""  # autoguidance: of a weaker model, instead of the unconditional one
    eta: float = option(0.0, low=0.0, high=1.0)  # ddim: the share of fresh noise
    churn: float = option(0.0, low=0.0)  # heun, euler: S_churn …
    churn_low: float = option(0.0, low=0.0)  # … above this σ …
    churn_high: float = option(0.0, low=0.0)  # … and up to this one; 0: no bound
    churn_noise: float = option(1.0, low=0.0)  # S_noise
    strength: float = option(-1.0, low=-1.0, high=1.0)  # of --image; −1: 0.6, with a mask 1
    resample: int = option(1, low=1)  # with a mask: how often each step is taken (RePaint)
    clip: bool = True  # keep denoised images in [−1, 1]
