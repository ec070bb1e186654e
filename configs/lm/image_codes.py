"""Images by a transformer: a language model over the codes of a discrete autoencoder.

    apt-get install dataset-fashion-mnist
    aigc prepare --from=idx:/usr/share/datasets/fashion-mnist --name=fashion --data_dir=data
    aigc train --config=vae/fsq --workdir=runs/fsq
    aigc train --config=lm/image_codes --workdir=runs/codes --config.first_stage.workdir=runs/fsq
    aigc eval --workdir=runs/codes            # nats per code, and the quality of its images
    aigc sample --workdir=runs/codes --label=7

An image is the token of its class followed by its codes, row by row. The autoencoder is a frozen
player, stored in the run's own checkpoints. Not measured on a CPU, where eight minutes are too few.
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        data=dict(source="tfds:fashion", data_dir="data", batch_size=64),
        first_stage=dict(workdir="runs/fsq"),
        model=dict(
            name="transformer",
            layers=4,
            width=192,
            heads=4,
            gated=True,
            activation="silu",
            qk_norm=True,
            dropout=0.1,
        ),
        objective=dict(name="lm"),
        optim=dict(
            lr=1e-3, b2=0.95, weight_decay=0.1, clip_norm=1.0, schedule="cosine", warmup_steps=200
        ),
        train=dict(steps=3000, log_every=50),
        ema=dict(halflife=20_000.0),
        eval=dict(every=1500, num_samples=2000),
        checkpoint=dict(every=500),
        sample=dict(num=100),
    )
