"""The VAE of the table in docs/results.md: Fashion-MNIST, class-conditional, for 2 CPU cores.

    apt-get install dataset-fashion-mnist
    aigc train --config=vae/fashion --workdir=runs/fashion_vae
    aigc eval --workdir=runs/fashion_vae

The data are Fashion-MNIST, from Debian's package dataset-fashion-mnist;
`--config.data.source=idx:DIR` takes any folder with MNIST's four IDX files. A hierarchy of three
groups of latents, 7×7, 7×7 and 14×14, with a Gaussian likelihood of learned scale. At most 30
minutes; eight minutes give a Fréchet classifier distance of 9.9 (docs/results.md).
`--config=vae/fashion:gpu` is a larger model for an hour on one GPU; it has not been measured.
"""

import aigc_jax


def get_config(size=""):
    large = size == "gpu"
    model = dict(channels=(16, 32, 64), groups=(0, 1, 2), latent=8, blocks=1)
    if large:
        model = dict(channels=(64, 128, 256), groups=(2, 4, 6), latent=16, blocks=2)
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="idx:/usr/share/datasets/fashion-mnist", batch_size=256 if large else 64),
        model=dict(name="hierarchical_vae", conditional=True, **model),
        objective=dict(
            name="vae",
            likelihood="gaussian",
            learn_scale=True,
            kl_warmup_steps=5000 if large else 500,
        ),
        optim=dict(name="adamw", lr=1e-3 if large else 2e-3, warmup_steps=200, clip_norm=500.0),
        train=dict(
            steps=40_000 if large else 6000,
            log_every=100,
            compute_dtype="bfloat16" if large else "float32",
        ),
        ema=dict(halflife=200_000.0 if large else 20_000.0),
        eval=dict(every=0, batch_size=100),
        checkpoint=dict(every=1000),
        sample=dict(num=100),
    )
