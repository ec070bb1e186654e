"""A fully connected GAN, 100-256-512-784 and back, of MNIST-like images (28×28).

    apt-get install dataset-fashion-mnist
    aigc prepare --from=idx:/usr/share/datasets/fashion-mnist --name=fashion --data_dir=data
    aigc train --config=gan/mlp --workdir=runs/gan_mlp
    aigc eval --workdir=runs/gan_mlp

20,000 steps of 64 images. Not measured.
"""

import aigc_jax


def get_config():
    player = dict(name="adam", lr=2e-4, b1=0.0, b2=0.99, schedule="constant")
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="tfds:fashion", data_dir="data", batch_size=64),
        model=dict(name="mlp", latent=100, hidden=(256, 512), conditional=False),
        objective=dict(name="gan", loss="relativistic", r1=1.0, r2=1.0),
        optim=dict(critic=player, generator=player),
        train=dict(steps=20_000, log_every=100),
        ema=dict(halflife=50_000.0),
        eval=dict(every=5000),
        checkpoint=dict(every=1000),
        sample=dict(every=5000, num=100),
    )
