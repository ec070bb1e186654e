"""DCGAN at 64×64 (Radford et al. 2016): dense 4·4·1024, then 512, 256, 128 and the colours.

    aigc prepare --from=folder:photos --image_size=64 --name=photos --data_dir=data
    aigc train --config=gan/dcgan64 --workdir=runs/dcgan64

`photos` is a folder of your own images. Group norm replaces batch norm, and a relativistic loss
with R1 and R2 the minimax loss. The critic's inputs are augmented (DiffAugment, Zhao et al. 2020),
for data sets of a few thousand images; with many more, set `--config.objective.augment="()"`. For
an accelerator; not measured.
"""

import aigc_jax


def get_config():
    player = dict(name="adam", lr=2e-4, b1=0.0, b2=0.99, schedule="constant")
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="tfds:photos", data_dir="data", batch_size=128),
        model=dict(
            name="dcgan",
            plain=True,
            latent=100,
            generator_channels=(1024, 512, 256, 128),
            critic_channels=(128, 256, 512, 1024),
            kernel=5,
            conditional=False,
        ),
        objective=dict(
            name="gan",
            loss="relativistic",
            r1=10.0,
            r2=10.0,
            augment=("translate", "brightness", "contrast", "saturation", "cutout"),
        ),
        optim=dict(critic=player, generator=player),
        train=dict(steps=50_000, log_every=100),
        ema=dict(halflife=500_000.0),
        eval=dict(every=10_000),
        checkpoint=dict(every=1000),
        sample=dict(every=5000, num=64),
    )
