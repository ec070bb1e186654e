"""R3GAN of CIFAR-10, class-conditional (Huang et al. 2024), for accelerators.

    pip install 'aigc-jax[tfds]'   # brings TensorFlow, for preparing the data only
    python -c "import tensorflow_datasets as t; t.builder('cifar10', file_format='array_record')\
.download_and_prepare()"
    aigc train --config=gan/r3gan_cifar10 --workdir=runs/r3gan_cifar10

Sizes and schedules are those of the authors' CIFAR-10 setting: four stages of 768 channels with two
blocks each, groups of 16 channels, 512 images per step, Adam without momentum; over the first 20
million images half a cosine takes the rate from 2e-4 to 5e-5, β₂ from 0.9 to 0.99, γ from 0.05 to
0.005 and the probability of augmentation from 0 to 0.55. Differences: the EMA's half-life of 5
million images is reached linearly, the augmentation has no hue, luma flip or fractional translation
and its colours are DiffAugment's, and training is in bfloat16 throughout. Not trained yet.
"""

import aigc_jax

BATCH, BURN_IN = 512, 20_000_000


def get_config():
    burn_in = BURN_IN // BATCH
    player = dict(
        name="adam",
        lr=2e-4,
        schedule="cosine",
        decay_steps=burn_in,
        final_lr_fraction=0.25,
        b1=0.0,
        b2=0.99,
        b2_start=0.9,
        b2_steps=burn_in,
    )
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="tfds:cifar10", batch_size=BATCH),
        model=dict(name="r3gan", latent=64, channels=(768,) * 4, blocks=2, group_width=16),
        objective=dict(
            name="gan",
            loss="relativistic",
            r1=0.005,
            r2=0.005,
            gamma_start=10.0,
            burn_in_steps=burn_in,
            augment=(
                "flip",
                "rotate90",
                "translate",
                "scale",
                "rotate",
                "anisotropy",
                "brightness",
                "contrast",
                "saturation",
                "cutout",
            ),
            augment_start=0.0,
            augment_probability=0.55,
        ),
        optim=dict(critic=player, generator=player),
        train=dict(steps=390_000, log_every=100, compute_dtype="bfloat16"),  # 200 million images
        ema=dict(halflife=5_000_000.0, rampup=0.25),
        eval=dict(every=20_000),
        checkpoint=dict(every=2000),
        sample=dict(every=5000, num=100),
    )
