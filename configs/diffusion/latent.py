"""Latent diffusion: a DiT over the latents of a trained autoencoder (Rombach et al. 2022).

    apt-get install dataset-fashion-mnist
    aigc prepare --from=idx:/usr/share/datasets/fashion-mnist --name=fashion --data_dir=data
    aigc train --config=vae/kl --workdir=runs/kl
    aigc train --config=diffusion/latent --workdir=runs/latent \
        --config.first_stage.workdir=runs/kl
    aigc eval --workdir=runs/latent
    aigc sample --workdir=runs/latent --label=7 --guidance=1.5

The autoencoder is a frozen player, stored in the run's own checkpoints: sampling needs runs/latent
alone. `first_stage` works with every model of images; over the codes of `vae/fsq` or `vae/vq` a
language model takes the place of diffusion (`lm/image_codes`). Not measured on a CPU, where eight
minutes are too few.
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        data=dict(source="tfds:fashion", data_dir="data", batch_size=128),
        first_stage=dict(workdir="runs/kl"),
        model=dict(name="dit", patch_size=1, width=128, depth=4, heads=4),
        objective=dict(name="diffusion"),
        optim=dict(lr=1e-3, warmup_steps=200, schedule="cosine", clip_norm=1.0),
        train=dict(steps=4000, log_every=50),
        ema=dict(halflife=50_000.0),
        eval=dict(every=2000, num_samples=2000),
        checkpoint=dict(every=500),
        sample=dict(num=100),
    )
