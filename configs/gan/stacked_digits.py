"""Three digits in the colour channels of one image: 1,000 modes, to measure mode collapse.

    for seed in 0 1 2 3 4 5 6 7 8 9; do
        aigc train --config=gan/stacked_digits --workdir=runs/stacked/$seed --config.seed=$seed
    done

The last record of a workdir's metrics.jsonl has `modes`, how many of the 1,000 are among 10,000
generated images, and `modes_kl`, the KL divergence of their frequencies from uniform, each beside
the value of real images. The model is not given the classes.

On 2 CPU cores, two minutes a seed: the ten seeds find 997, 995, 1,000, 995, 996, 994, 997, 997, 997
and 1,000 modes (10,000 real images 1,000) with a KL of 0.09 to 0.19 nats (real 0.05); none
collapses, and no warning is raised.
"""

import aigc_jax


def get_config():
    player = dict(name="adam", lr=1e-3, b1=0.0, b2=0.99, schedule="constant")
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="stacked_digits", batch_size=64),
        model=dict(
            name="dcgan",
            latent=64,
            generator_channels=(64, 32),
            critic_channels=(32, 64),
            conditional=False,
        ),
        objective=dict(name="gan", loss="relativistic", r1=1.0, r2=1.0),
        optim=dict(critic=player, generator=player),
        train=dict(steps=1500, log_every=50),
        ema=dict(halflife=10_000.0),
        eval=dict(every=1500, num_samples=10_000),
        checkpoint=dict(every=500),
        sample=dict(num=100),
    )
