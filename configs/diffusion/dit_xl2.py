"""DiT-XL/2 over the latents of 256×256 images (Peebles & Xie 2023), for accelerators.

    aigc plan --config=diffusion/dit_xl2 --synthetic=latents:32x32x4:1000 --topology=v6e:4x4
    aigc prepare --from=folder:imagenet/train --name=imagenet256 --data_dir=data --image_size=256
    aigc train --config=vae/kl --workdir=runs/kl256 --config.data.source=tfds:imagenet256 \
        --config.data.data_dir=data --config.model.channels="(64, 128, 256, 256)"
    aigc train --config=diffusion/dit_xl2 --workdir=runs/dit \
        --config.data.data_dir=data --config.first_stage.workdir=runs/kl256

The published sizes and training: 675 million parameters, batches of 256, a constant rate of 10⁻⁴
without weight decay or warm-up, an EMA with a decay of 0.9999 (a half-life of 1.8 million images),
400,000 steps (the paper's comparisons; its best model took 7 million). The first stage must map an
image to 32×32×4 latents, a factor of 8 per side. The denoiser alone can be planned on latents of
that shape (`--synthetic`). 256 images are few for 256 chips: see docs/plans.md. Not trained yet.
"""

import aigc_jax
from aigc_jax.families.lm.presets import DIT_XL_2


def get_config():
    return aigc_jax.recipe(
        data=dict(source="tfds:imagenet256", batch_size=256, threads=32),
        model=dict(DIT_XL_2, remat="full"),
        objective=dict(name="diffusion", prediction="epsilon", schedule="linear"),
        optim=dict(name="adamw", lr=1e-4, schedule="constant"),
        train=dict(steps=400_000, log_every=100, compute_dtype="bfloat16"),
        ema=dict(halflife=1_800_000.0, rampup=0.0),
        eval=dict(every=25_000, batch_size=256, num_samples=10_000),
        checkpoint=dict(every=2500),
        sample=dict(every=25_000, num=64, sampler="ddim", steps=250, guidance=1.5),
    )
