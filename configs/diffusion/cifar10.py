"""A class-conditional diffusion U-Net of CIFAR-10 (32×32 colour), for accelerators.

    pip install 'aigc-jax[tfds]'   # brings TensorFlow, for preparing the data only
    python -c "import tensorflow_datasets as t; t.builder('cifar10', file_format='array_record')\
.download_and_prepare()"
    aigc train --config=diffusion/cifar10 --workdir=runs/cifar10
    aigc sample --workdir=runs/cifar10 --num=64

About the size and the training of EDM's DDPM++ network (Karras et al. 2022, table 7): 58 million
parameters, 200 million images in batches of 512, with non-leaky augmentation. With that network and
18 steps of Heun's method the authors report an FID of 1.79; this recipe has not been trained yet.
`--config.eval.likelihood_examples=1000` adds the exact likelihood of 1,000 held-out images.
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        data=dict(source="tfds:cifar10", batch_size=512, threads=16),
        model=dict(
            name="unet",
            channels=(128, 256, 256, 256),
            blocks=4,
            attention_levels=(1,),
            heads=1,
            embedding=512,
            frequencies=128,
            dropout=0.13,
        ),
        objective=dict(name="diffusion", prediction="edm", augment=0.12),
        optim=dict(name="adam", lr=1e-3, warmup_steps=20_000, schedule="constant"),
        train=dict(steps=390_000, log_every=100, compute_dtype="bfloat16"),
        ema=dict(halflife=500_000.0),
        eval=dict(every=20_000, batch_size=512),
        checkpoint=dict(every=5000),
        sample=dict(every=20_000, num=100, sampler="heun", steps=18),
    )
