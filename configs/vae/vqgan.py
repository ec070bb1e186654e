"""A VQGAN (Esser et al. 2021): FSQ codes, a critic of patches, and its features as a measure.

    aigc train --config=configs/vae/vqgan.py --workdir=runs/vqgan --config.data.source=idx:DIR
    aigc eval --workdir=runs/vqgan

DIR holds MNIST's four IDX files; the default is Debian's Fashion-MNIST. Two players on the one
train step: the critic moves first, and joins in after 1,500 steps, when there is something to
criticise. `vqgan.py:vq` learns the codebook instead.
"""

import aigc_jax


def get_config(quantizer="fsq"):
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="idx:/usr/share/datasets/fashion-mnist", batch_size=64),
        model=dict(name="conv", channels=(16, 32, 64), latent=32, spatial=True, blocks=1),
        objective=dict(
            name="vq",
            quantizer=quantizer or "fsq",
            levels=(8, 5, 5, 5),
            num_codes=1024,
            code_dim=8,
            reconstruction_error="absolute",
            critic_weight=0.1,
            critic_loss="hinge",
            critic_channels=(32, 64, 64),
            critic_start=1500,
            feature_weight=0.1,
        ),
        optim=dict(
            model=dict(name="adamw", lr=1e-3, warmup_steps=200, b1=0.5, b2=0.9),
            critic=dict(name="adamw", lr=4e-4, b1=0.5, b2=0.9),
        ),
        train=dict(steps=6000, log_every=100),
        ema=dict(halflife=5000.0),
        eval=dict(every=2000),
        checkpoint=dict(every=1000),
        sample=dict(num=64),
    )
