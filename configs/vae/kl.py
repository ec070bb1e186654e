"""A continuous autoencoder, 28×28 → 7×7×4: a first stage for latent diffusion.

    apt-get install dataset-fashion-mnist
    aigc train --config=vae/kl --workdir=runs/kl
    aigc eval --workdir=runs/kl

The data are Fashion-MNIST, from Debian's package dataset-fashion-mnist;
`--config.data.source=idx:DIR` takes any folder with MNIST's four IDX files. The scale of the
likelihood is fixed at 0.05 of the range: much more weight on pixels than on the KL, as in Rombach
et al. (2022), but enough KL for latents of about unit scale, which diffusion expects.
`diffusion/latent` trains on these latents.
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="idx:/usr/share/datasets/fashion-mnist", batch_size=64),
        model=dict(name="conv", channels=(16, 32, 64), latent=4, spatial=True, blocks=1),
        objective=dict(
            name="vae", likelihood="gaussian", learn_scale=False, scale=0.05, kl_warmup_steps=500
        ),
        optim=dict(name="adamw", lr=1e-3, warmup_steps=200, clip_norm=1000.0),
        train=dict(steps=6000, log_every=100),
        ema=dict(halflife=5000.0),
        eval=dict(every=2000),
        checkpoint=dict(every=1000),
        sample=dict(num=64),
    )
