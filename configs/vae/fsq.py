"""Images as 7×7 codes by finite scalar quantization (Mentzer et al. 2023): an image tokenizer.

    apt-get install dataset-fashion-mnist
    aigc train --config=vae/fsq --workdir=runs/fsq
    aigc eval --workdir=runs/fsq

The data are Fashion-MNIST, from Debian's package dataset-fashion-mnist;
`--config.data.source=idx:DIR` takes any folder with MNIST's four IDX files. Each position has one
of 8·5·5·5 = 1,000 codes; there is no codebook to collapse. `aigc eval` reports the share of codes
that the test set uses (`codes_used`), their perplexity (`code_perplexity`) and the quality of
reconstructions (`psnr`). The workdir can be the first stage of a model that generates images code
by code (`lm/image_codes`).

Five minutes on 2 CPU cores: PSNR 23.6 dB, all codes used (docs/results.md).
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
