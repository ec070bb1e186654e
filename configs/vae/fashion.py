"""The VAE of the table in docs/results.md: Fashion-MNIST, class-conditional, for 2 CPU cores.

    aigc train --config=configs/vae/fashion.py --workdir=runs/fashion_vae
    aigc eval --workdir=runs/fashion_vae

The files are those of Debian's package `dataset-fashion-mnist`; any folder of IDX files will do
(`--config.data.source=idx:DIR`). A ladder of three groups of latents, 7×7, 7×7 and 14×14, under a
Gaussian likelihood of learned scale; at most 30 minutes.
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="idx:/usr/share/datasets/fashion-mnist", batch_size=64),
        model=dict(
            name="ladder",
            channels=(16, 32, 64),
            groups=(0, 1, 2),
            latent=8,
            blocks=1,
            conditional=True,
        ),
        objective=dict(name="vae", likelihood="gaussian", learn_scale=True, kl_warmup_steps=500),
        optim=dict(name="adamw", lr=2e-3, warmup_steps=200, clip_norm=500.0),
        train=dict(steps=6000, log_every=100),
        ema=dict(halflife=20_000.0),
        eval=dict(every=0, batch_size=100),
        checkpoint=dict(every=1000),
        sample=dict(num=100),
    )
