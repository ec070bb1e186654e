"""Named entities in tweets: token classification on WNUT-17 by fine-tuning.

    aigc train --config=lm/ner --workdir=runs/ner --config.data.source=conll:DIR
    aigc eval --workdir=runs/ner          # prints the report per entity
    aigc sample --workdir=runs/ner --prompt="Just landed in Lisbon with Ana"

DIR, by default data/wnut17, holds the files wnut17train.conll and emerging.dev.conll of the shared
task (Derczynski et al. 2017). The model is SmolLM2-135M-Instruct in runs/smollm2, which
`lm/lora_smollm2` shows how to make, without its causal mask, so that a word attends to those after
it, and with adapters on all projections.

On 2 CPU cores shared with other work, 55 minutes (27 minutes, 3.8 seconds a step, on idle cores):
of the 836 entities of emerging.dev.conll precision 0.690, recall 0.495, F1 0.577 (micro); persons
0.721, locations 0.613, products 0.370, corporations 0.313, creative works 0.236, groups 0.203.
"""

import aigc_jax
from aigc_jax.families.lm.presets import SMOLLM2_135M

FROM = "runs/smollm2"


def get_config():
    return aigc_jax.recipe(
        data=dict(
            source="conll:data/wnut17",
            format="tags",
            tokenizer=f"workdir:{FROM}",
            seq_len=64,
            batch_size=16,
        ),
        model=dict(
            SMOLLM2_135M,
            causal=False,
            lora_rank=16,
            lora_alpha=32.0,
            lora_targets=("query", "key", "value", "out", "gate", "in", "down"),
        ),
        objective=dict(name="tagging"),
        optim=dict(lr=1e-3, schedule="linear", warmup_steps=30, clip_norm=1.0),
        train=dict(steps=424, log_every=10, init_from=FROM),  # two epochs
        eval=dict(every=212, batch_size=32),
        checkpoint=dict(every=212, keep=1),
        sample=dict(prompts=("Just landed in Lisbon with Ana",)),
    )
