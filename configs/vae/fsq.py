"""Images as 7×7 codes by finite scalar quantisation (Mentzer et al. 2023): a tokenizer of images.

    aigc train --config=configs/vae/fsq.py --workdir=runs/fsq --config.data.source=idx:DIR
    aigc eval --workdir=runs/fsq

DIR holds MNIST's four IDX files; the default is Debian's Fashion-MNIST. Each place has one of
8·5·5·5 = 1,000 codes; there is no codebook to collapse. `aigc eval` says how many codes the test
set uses (`codes_used`), how evenly (`code_perplexity`), and how good reconstructions are (`psnr`).
The workdir can be the first stage of a model that writes images code by code.
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="idx:/usr/share/datasets/fashion-mnist", batch_size=64),
        model=dict(name="conv", channels=(16, 32, 64), latent=32, spatial=True, blocks=1),
        objective=dict(name="vq", quantizer="fsq", levels=(8, 5, 5, 5)),
        optim=dict(name="adamw", lr=1e-3, warmup_steps=200),
        train=dict(steps=6000, log_every=100),
        ema=dict(halflife=5000.0),
        eval=dict(every=2000),
        checkpoint=dict(every=1000),
        sample=dict(num=64),
    )
