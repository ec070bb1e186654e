"""A class-conditional DCGAN of handwritten digits (8×8, scikit-learn).

    aigc train --config=gan/quickstart --workdir=runs/gan
    aigc eval --workdir=runs/gan
    aigc sample --workdir=runs/gan --label=3

The relativistic loss with R1 and R2 stays in balance without tuning; images are drawn with the
generator's EMA.

On 2 CPU cores: 56 seconds to a Fréchet classifier distance of 2.6 (training images 1.8, Gaussian
per class 6.5).
"""

import aigc_jax


def get_config():
    player = dict(name="adamw", lr=1e-3, b1=0.0, b2=0.99, schedule="constant")
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="digits", batch_size=64),
        model=dict(name="dcgan", generator_channels=(64, 32), critic_channels=(32, 64)),
        objective=dict(name="gan", loss="relativistic", r1=1.0, r2=1.0),
        optim=dict(critic=player, generator=player),
        train=dict(steps=1000, log_every=50),
        ema=dict(halflife=10_000.0),
        eval=dict(every=250),
        checkpoint=dict(every=100),
        sample=dict(num=100),
    )
