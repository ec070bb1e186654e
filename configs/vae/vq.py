"""Images as 7×7 codes of a learned codebook (van den Oord et al. 2017, Yu et al. 2022).

    aigc train --config=configs/vae/vq.py --workdir=runs/vq --config.data.source=idx:DIR
    aigc eval --workdir=runs/vq

DIR holds MNIST's four IDX files; the default is Debian's Fashion-MNIST. The 1,024 codes are
vectors of 8 numbers and length 1; they start by k-means, follow their members, and move to where
vectors are if they die. `codes_used`, `code_perplexity` and `psnr` are those of the test set.
The workdir can be the first stage of a model that writes images code by code.
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="idx:/usr/share/datasets/fashion-mnist", batch_size=64),
        model=dict(name="conv", channels=(16, 32, 64), latent=32, spatial=True, blocks=1),
        objective=dict(name="vq", quantizer="vq", num_codes=1024, code_dim=8),
        optim=dict(name="adamw", lr=1e-3, warmup_steps=200),
        train=dict(steps=6000, log_every=100),
        ema=dict(halflife=5000.0),
        eval=dict(every=2000),
        checkpoint=dict(every=1000),
        sample=dict(num=64),
    )
