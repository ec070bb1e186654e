"""A Llama of 1.2 billion parameters (Llama 3.2 1B's sizes), pretrained on your own text.

    aigc prepare --from=jsonl:web.jsonl --name=web --data_dir=data
    aigc train --config=lm/llama_1b --workdir=runs/llama \
        --config.data.source=tfds:web --config.data.data_dir=data \
        --config.data.tokenizer=file:llama/tokenizer.json --config.model.vocab_size=128256

Packed documents that do not attend to each other, 2²¹ tokens per step in bfloat16, Muon for the
matrices and AdamW for the rest, a warm-up–stable–decay schedule over the last fifth; the z-loss
keeps the logits from drifting in bfloat16. 12,000 steps are 25 billion tokens, about 20 per
parameter (Hoffmann et al. 2022). On 64 devices each holds one text at a time; with fewer raise
train.accumulate. docs/plans.md says what it takes on 256 chips. Not trained yet: the tests check
its size, and two steps of a small one.
"""

import aigc_jax
from aigc_jax.families.lm.presets import LLAMA_1B


def get_config():
    return aigc_jax.recipe(
        data=dict(
            source="python_docs",
            format="documents",
            tokenizer="bpe",
            vocab_size=32_768,
            seq_len=4096,
            batch_size=512,
            validation_fraction=0.05,
        ),
        model=dict(LLAMA_1B, remat="full", scan_unroll=1),
        objective=dict(name="lm", z_loss=1e-4),
        optim=dict(
            name="muon",
            lr=0.01,
            adam_lr=3e-4,
            b1=0.95,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule="wsd",
            warmup_steps=500,
            decay_fraction=0.2,
        ),
        train=dict(steps=12_000, log_every=10, accumulate=8, compute_dtype="bfloat16"),
        eval=dict(every=500, batch_size=64),
        checkpoint=dict(every=250, keep=3),
        sample=dict(every=2000, num=4, max_new_tokens=200, top_p=0.9),
        anomaly=dict(spike_threshold=8.0, max_rollbacks=5),
    )
