"""A Llama 3 of 8 billion parameters (Grattafiori et al. 2024), pretrained on your own text.

    aigc plan --config=lm/llama_8b --topology=v5p:4x8x8 --fit
    aigc prepare --from=jsonl:web.jsonl --name=web --data_dir=data
    aigc train --config=lm/llama_8b --workdir=runs/llama_8b \
        --config.data.source=tfds:web --config.data.data_dir=data \
        --config.data.tokenizer=file:llama/tokenizer.json

Sizes, context, vocabulary and learning rate are the published ones. Packed documents that do not
attend to each other, 2²² tokens per step in bfloat16; 38,000 steps are 160 billion tokens, about 20
per parameter (Hoffmann et al. 2022). docs/plans.md says what it takes on 256 chips of three kinds;
if it does not fit, `--fit` says what to change. Not trained yet: the tests check its size and its
plans.
"""

import aigc_jax
from aigc_jax.families.lm.presets import LLAMA_8B


def get_config():
    return aigc_jax.recipe(
        mesh="fsdp=-1",
        data=dict(
            source="tfds:web",
            format="documents",
            tokenizer="file:llama/tokenizer.json",
            seq_len=8192,
            batch_size=512,
            validation_fraction=0.01,
            threads=32,
        ),
        model=dict(LLAMA_8B, context=8192, remat="full"),
        objective=dict(name="lm", z_loss=1e-4),
        optim=dict(
            name="adamw",
            lr=3e-4,
            b1=0.9,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule="cosine",
            warmup_steps=2000,
            final_lr_fraction=0.1,
        ),
        train=dict(steps=38_000, log_every=10, compute_dtype="bfloat16"),
        eval=dict(every=1000, batch_size=512, batches=8),
        checkpoint=dict(every=250, keep=3),
        sample=dict(every=0, num=4, max_new_tokens=200, top_p=0.9),
        anomaly=dict(spike_threshold=8.0, max_rollbacks=5),
    )
