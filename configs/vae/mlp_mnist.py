"""The fully connected VAE of the textbooks, 784-400-20, on binarised 28×28 images.

    aigc train --config=configs/vae/mlp_mnist.py --workdir=runs/vae_mnist \
        --config.data.source=idx:DIR
    aigc eval --workdir=runs/vae_mnist

DIR holds MNIST's four IDX files, gzipped or not; the default is where Debian's package
`dataset-fashion-mnist` puts those of Fashion-MNIST. `iwae` is the importance-weighted bound with
k = 50 in nats on the test set, for pixels that are binarised dynamically: drawn anew with their
grey value as probability each time. `configs/vae/mlp_mnist.py:static` draws them once per image, in
training and test alike (the protocol of Salakhutdinov & Murray 2008; not their published draw).
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
