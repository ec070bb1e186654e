"""A class-conditional diffusion model of ImageNet at 64×64, for accelerators.

    pip install 'aigc-jax[tfds]'   # brings TensorFlow, for preparing the data only
    python -c "import tensorflow_datasets as t; t.builder('imagenet_resized/64x64',\
 file_format='array_record').download_and_prepare()"
    aigc train --config=diffusion/imagenet64 --workdir=runs/imagenet64
    aigc train --config=diffusion/imagenet64:dit --workdir=runs/imagenet64_dit
    aigc sample --workdir=runs/imagenet64 --steps=32 --guidance=1.4 --guidance_workdir=runs/weaker

A U-Net of about the size of the ADM network with which EDM was trained at this resolution (Karras
et al. 2022, table 7): 4 levels of 3 blocks, attention at 32×32 and below, 64 channels per head, 284
million parameters, batches of 4096 images. `:dit` is DiT-L/4 (Peebles & Xie 2023) trained by flow
matching. `--guidance_workdir` names a run of fewer steps or of a smaller network (autoguidance,
Karras et al. 2024). The EMAs are power functions whose width can be chosen after training
(`--sigma_rel=0.05`). Not trained yet.
"""

import aigc_jax


def get_config(network="unet"):
    model = dict(
        name="unet", channels=(192, 384, 576, 768), blocks=3, attention_levels=(1, 2, 3),
        head_size=64, resample="block", embedding=768, frequencies=192, dropout=0.1, remat="full",
    )  # fmt: skip
    objective = dict(name="diffusion", prediction="edm")
    if network == "dit":
        model = dict(
            name="dit", patch_size=4, width=1024, depth=24, heads=16, qk_norm=True, remat="full"
        )
        objective = dict(name="diffusion", prediction="flow")
    return aigc_jax.recipe(
        data=dict(source="tfds:imagenet_resized/64x64", batch_size=4096, threads=32),
        model=model,
        objective=objective,
        optim=dict(name="adam", lr=1e-4, warmup_steps=2500, schedule="constant", b2=0.99),
        train=dict(steps=600_000, log_every=100, compute_dtype="bfloat16", accumulate=4),
        ema=dict(sigma_rels=(0.05, 0.1), snapshot_every=10_000),
        eval=dict(every=25_000, batch_size=1024, num_samples=10_000),
        checkpoint=dict(every=2500),
        sample=dict(every=25_000, num=64, sampler="heun", steps=32),
    )
