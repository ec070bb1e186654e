"""A hierarchical VAE: five groups of latents, coarse to fine, on binarised 28×28 images.

    apt-get install dataset-fashion-mnist
    aigc train --config=vae/hierarchical_vae --workdir=runs/hierarchical_vae
    aigc eval --workdir=runs/hierarchical_vae

The data are Fashion-MNIST, from Debian's package dataset-fashion-mnist;
`--config.data.source=idx:DIR` takes any folder with MNIST's four IDX files. Two groups are of 7×7
positions, two of 14×14 and one of 28×28; `kl_0`, `kl_1`, … are the KL divergence of each, from the
top. Pixels are binarised dynamically, and `iwae` (k = 50) is in nats on the test set;
`--config=vae/hierarchical_vae:static` binarises once per image, as `vae/mlp_mnist` explains.
"""

import aigc_jax


def get_config(binarize="dynamic"):
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="idx:/usr/share/datasets/fashion-mnist", batch_size=64),
        model=dict(name="hierarchical_vae", channels=(16, 32, 64), groups=(1, 2, 2), latent=8),
        objective=dict(
            name="vae",
            likelihood="bernoulli",
            binarize=binarize or "dynamic",
            kl_warmup_steps=2000,
        ),
        optim=dict(name="adamw", lr=1e-3, warmup_steps=200, clip_norm=200.0),
        train=dict(steps=20_000, log_every=100),
        ema=dict(halflife=50_000.0),
        eval=dict(every=5000),
        checkpoint=dict(every=1000),
        sample=dict(num=100),
    )
