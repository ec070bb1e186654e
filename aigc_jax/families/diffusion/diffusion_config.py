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
    sampler: str = option("heun", choices=SAMPLERS, flag="Sampler.")
    steps: int = option(18, low=1, flag="Number of sampling steps.")
    sigma_schedule: str = option(
        "auto", choices=SIGMA_SCHEDULES, flag="Noise levels of the steps; auto: the objective's."
    )
    rho: float = option(
        7.0,
        low=1.0,
        flag="karras: larger values take more steps at low noise (Karras et al. 2022).",
    )
    shift: float = option(
        1.0, low=1e-3, flag="flow: above 1 more steps at high noise (Esser et al. 2024)."
    )
    guidance: float = option(
        1.0,
        low=0.0,
        flag="Scale of classifier-free guidance (Ho & Salimans 2022); 1: off, 0: unconditional.",
    )
    guidance_low: float = option(
        0.0, low=0.0, flag="Guide only above this σ (Kynkäänniemi et al. 2024)."
    )
    guidance_high: float = option(0.0, low=0.0, flag="Guide only up to this σ; 0: no bound.")
    guidance_workdir: str = option(
        "", flag="Workdir of a weaker model for autoguidance (Karras et al. 2024)."
    )
    eta: float = option(
        0.0,
        low=0.0,
        high=1.0,
        flag="ddim: share of fresh noise; 0: deterministic, 1: DDPM (Song et al. 2021).",
    )
    churn: float = option(
        0.0, low=0.0, flag="heun, euler: S_churn, noise added at each step (Karras et al. 2022)."
    )
    churn_low: float = option(0.0, low=0.0, flag="S_tmin: add noise only above this σ.")
    churn_high: float = option(
        0.0, low=0.0, flag="S_tmax: add noise only up to this σ; 0: no bound."
    )
    churn_noise: float = option(1.0, low=0.0, flag="S_noise: scale of the added noise.")
    strength: float = option(
        -1.0,
        low=-1.0,
        high=1.0,
        flag="Share of the steps by which --image is noised (SDEdit, Meng et al. 2022); −1: 0.6,"
        " with --mask 1.",
    )
    resample: int = option(
        1, low=1, flag="With --mask: times each step is repeated (RePaint, Lugmayr et al. 2022)."
    )
    clip: bool = option(True, flag="Clip denoised images to [−1, 1].")
