"""GPT-2 124M, pretrained on your own text with a context of 1,024 tokens, in bfloat16.

    aigc prepare --from=jsonl:web.jsonl --name=web --data_dir=data
    aigc train --config=lm/gpt2_124m --workdir=runs/gpt2 \
        --config.data.source=tfds:web --config.data.data_dir=data \
        --config.data.tokenizer=file:gpt2/tokenizer.json

Batches of 2¹⁹ tokens as in nanoGPT, 19,073 of them for 10 billion tokens; AdamW with a cosine
schedule down to a tenth. With less memory raise train.accumulate, which keeps the batch. nanoGPT
publishes a validation loss of 2.85 after 300 billion tokens of OpenWebText. Not trained yet: the
tests check its size, and two steps with two layers.
"""

import aigc_jax
from aigc_jax.families.lm.presets import GPT2_124M


def get_config():
    return aigc_jax.recipe(
        data=dict(
            source="python_docs",
            tokenizer="bpe",
            vocab_size=16_384,
            seq_len=1024,
            batch_size=512,
            validation_fraction=0.05,
        ),
        model=dict(GPT2_124M, remat="dots", scan_unroll=1),
        objective=dict(name="lm"),
        optim=dict(
            name="adamw",
            lr=6e-4,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule="cosine",
            warmup_steps=700,
            final_lr_fraction=0.1,
        ),
        train=dict(steps=19_073, log_every=10, accumulate=16, compute_dtype="bfloat16"),
        eval=dict(every=500, batch_size=32),
        checkpoint=dict(every=500, keep=3),
        sample=dict(every=2000, num=4, max_new_tokens=200, top_p=0.9),
        anomaly=dict(spike_threshold=8.0, max_rollbacks=5),
    )
