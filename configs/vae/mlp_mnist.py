"""The fully connected VAE of the textbooks, 784-400-20, on binarised 28×28 images.

    apt-get install dataset-fashion-mnist
    aigc train --config=vae/mlp_mnist --workdir=runs/vae_mnist
    aigc eval --workdir=runs/vae_mnist

The data are Fashion-MNIST, from Debian's package dataset-fashion-mnist;
`--config.data.source=idx:DIR` takes any folder with MNIST's four IDX files. `iwae` is the
importance-weighted bound with k = 50 in nats on the test set, for pixels that are binarised
dynamically: drawn again each time, with their grey value as probability.
`--config=vae/mlp_mnist:static` binarises once per image, in training and test alike (the protocol
of Salakhutdinov & Murray 2008; not their published draw).

Five minutes on 2 CPU cores: an IWAE bound of −237.2 nats on Fashion-MNIST (docs/results.md).
"""

import aigc_jax


def get_config(binarize="dynamic"):
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="idx:/usr/share/datasets/fashion-mnist", batch_size=100),
        model=dict(name="mlp", latent=20, hidden=(400,)),
        objective=dict(
            name="vae",
            likelihood="bernoulli",
            binarize=binarize or "dynamic",
            importance_samples=50,
        ),
        optim=dict(name="adam", lr=1e-3, schedule="cosine", final_lr_fraction=0.05),
        train=dict(steps=30_000, log_every=200),
        eval=dict(every=10_000),
        checkpoint=dict(every=2000),
        sample=dict(num=100),
    )
