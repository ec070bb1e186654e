"""Greedy text of Hugging Face's transformers and ours is the same, token by token."""

import jax
import numpy as np
import pytest
from parity.test_transformers import CASES, theirs, torch  # skips without these libraries

from aigc_jax import interop
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.inference.decode import decode
from aigc_jax.inference.prompts import pad_prompts
from aigc_jax.inference.sampling_params import SamplingParams

COUNT = 30
CHOICES = (
    "llama",
    "llama wide heads",
    "llama yarn",
    "mistral window",
    "qwen2",
    "qwen3 layer types",
    "gemma2 caps",
    "gpt2",
)


def decoded(model, variables, keys, prompts, **kw):
    """New tokens after prompts of any lengths."""
    return decode(model, variables, keys, *pad_prompts(prompts).values(), **kw)


@pytest.mark.parametrize("case", CHOICES)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_text_is_theirs(case, penalty, tmp_path):
    """Ours with prompts of all lengths in one batch and a cache, theirs one by one."""
    kind, changes = CASES[case]
    model = theirs(kind, changes)
    model.save_pretrained(tmp_path)
    read = interop.read_hf_folder(str(tmp_path))
    config = TransformerConfig(**read.model)
    module = Transformer(config, config.vocab_size, config.context)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 101, n).astype(np.int32) for n in (1, 5, 17, 40)]
    ours = decoded(
        module,
        {"params": read.params},
        jax.random.split(jax.random.key(0), len(prompts)),
        prompts,
        max_new_tokens=COUNT,
        sampling=SamplingParams(temperature=0.0, repetition_penalty=penalty),
    )
    for prompt, row in zip(prompts, np.asarray(ours), strict=True):
        text = torch.as_tensor(prompt[None], dtype=torch.long)
        want = model.generate(
            text,
            attention_mask=torch.ones_like(text),
            max_new_tokens=COUNT,
            do_sample=False,
            repetition_penalty=penalty,
        )
        assert row.tolist() == want[0, len(prompt) :].tolist()
