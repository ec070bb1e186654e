"""A class-conditional diffusion U-Net of handwritten digits (8×8, scikit-learn), EDM.

    aigc train --config=diffusion/quickstart --workdir=runs/diffusion
    aigc eval --workdir=runs/diffusion
    aigc sample --workdir=runs/diffusion --sampler=heun --steps=18 --guidance=1.5

`--config.objective.prediction=flow` trains by flow matching; `epsilon`, `v` and `x` use DDPM's
cosine schedule.

On 2 CPU cores: 54 seconds to a Fréchet classifier distance of 2.2 (training images 1.8, Gaussian
per class 6.5).
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="digits", batch_size=64),
        model=dict(name="unet", channels=(32, 64), blocks=1, attention_levels=(1,)),
        objective=dict(name="diffusion", prediction="edm"),
        optim=dict(name="adamw", lr=2e-3, warmup_steps=100, schedule="cosine"),
        train=dict(steps=700, log_every=50),
        ema=dict(halflife=10_000.0),
        checkpoint=dict(every=100),
        sample=dict(num=100, sampler="heun", steps=18),
    )
