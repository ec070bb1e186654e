"""The config and the sampling options of diffusion models."""

import dataclasses

from aigc_jax.core import config
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.families.diffusion import preconditioning as noise_lib
from aigc_jax.families.diffusion import samplers, sigma_schedules
from aigc_jax.families.diffusion.noise_schedules import SCHEDULES, Flow, Karras, Timesteps
from aigc_jax.families.diffusion.preconditioning import LogNormal, Preconditioning, Uniform
from aigc_jax.ops import augment as augment_lib

GEOMETRY = ("flip", "rotate90", "translate", "scale", "rotate", "anisotropy")
AUGMENTATIONS = tuple(augment_lib.KINDS)


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """`auto`: what the prediction was published with, see `noise.USUAL`."""

    prediction: str = option("edm", choices=tuple(noise_lib.PREDICTIONS))
    schedule: str = option("auto", choices=("auto", *SCHEDULES))
    levels: str = option("auto", choices=("auto", "log_normal", "logit_normal", "uniform"))
    weighting: str = option("uniform", choices=noise_lib.WEIGHTINGS)
    label_dropout: float = option(0.1, low=0.0, high=1.0)  # for classifier-free guidance
    sigma_data: float = option(0.5, low=1e-6)  # edm: standard deviation of the data
    p_mean: float = -1.2  # log_normal: ln σ is normal with this mean …
    p_std: float = option(1.2, low=1e-6)  # … and deviation
    t_mean: float = 0.0  # logit_normal: the same for the logit of t = σ / (1 + σ)
    t_std: float = option(1.0, low=1e-6)
    sigma_min: float = option(0.002, low=1e-9)  # edm: where sampling ends …
    sigma_max: float = option(80.0, low=1e-6)  # … and starts
    beta_start: float = option(1e-4, low=1e-9, high=0.999)  # linear, scaled_linear: β begins here …
    beta_end: float = option(0.02, low=1e-9, high=0.999)  # … and ends here
    min_snr_gamma: float = option(5.0, low=1e-6)
    augment: float = option(0.0, low=0.0, high=1.0)  # probability of each; the network is told
    augment_kinds: tuple[str, ...] = option(GEOMETRY, choices=AUGMENTATIONS, nonempty=True)
    eval_draws: int = option(8, low=1, resumable=True)  # noise levels per held-out image
    likelihood_steps: int = option(
        64, low=1, resumable=True
    )  # of the ODE, when eval.likelihood asks for it


@dataclasses.dataclass(frozen=True)
class DiffusionSample(config.Sample):
    sampler: str = option("heun", choices=samplers.SAMPLERS)
    steps: int = option(18, low=1)
    grid: str = option("auto", choices=sigma_schedules.SIGMA_SCHEDULES)
    rho: float = option(7.0, low=1.0)  # karras: how much more steps there are at little noise
    shift: float = option(1.0, low=1e-3)  # flow: above 1 more steps at much noise
    guidance: float = option(1.0, low=0.0)  # 1: the conditional model as it is; 0: unconditional
    guidance_low: float = option(0.0, low=0.0)  # guidance only above this σ …
    guidance_high: float = option(0.0, low=0.0)  # … and up to this one; 0: no bound
    guide: str = ""  # workdir of a worse model, which guides instead of the unconditional one
    eta: float = option(0.0, low=0.0, high=1.0)  # ddim: the share of fresh noise
    churn: float = option(0.0, low=0.0)  # heun, euler: S_churn …
    churn_low: float = option(0.0, low=0.0)  # … above this σ …
    churn_high: float = option(0.0, low=0.0)  # … and up to this one; 0: no bound
    churn_noise: float = option(1.0, low=0.0)  # S_noise
    strength: float = option(-1.0, low=-1.0, high=1.0)  # of --image; −1: 0.6, with a mask 1
    resample: int = option(1, low=1)  # with a mask: how often each step is taken
    clip: bool = True  # keep denoised images in [−1, 1]


def make_noise(config: DiffusionConfig) -> Preconditioning:
    """The four choices of a config."""
    schedule, levels = noise_lib.DEFAULTS[config.prediction]
    schedule = schedule if config.schedule == "auto" else config.schedule
    levels = levels if config.levels == "auto" else config.levels
    if schedule == "edm" and config.sigma_min >= config.sigma_max:
        raise UserError(
            f"objective.sigma_min={config.sigma_min} must be less than"
            f" objective.sigma_max={config.sigma_max}"
        )
    schedules = {"edm": Karras(config.sigma_min, config.sigma_max), "flow": Flow()}
    drawn = {
        "log_normal": LogNormal(config.p_mean, config.p_std),
        "logit_normal": LogNormal(config.t_mean, config.t_std),
        "uniform": Uniform(),
    }
    return Preconditioning(
        config.prediction,
        schedules.get(schedule)
        or Timesteps(schedule, beta_start=config.beta_start, beta_end=config.beta_end),
        drawn[levels],
        config.weighting,
        config.sigma_data,
        config.min_snr_gamma,
    )
