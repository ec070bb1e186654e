"""GPT-2 of transformers, trained as nanoGPT trains.

Attention is PyTorch's `scaled_dot_product_attention`, GELU the exact one, as in nanoGPT: PyTorch's
own, in one kernel.
"""

from typing import Any

import torch
import transformers
from torch.nn import functional

from benchmarks.peers.work import LM_ADAMW, Text, texts

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def gpt2(size: Text) -> Any:
    """GPT-2 of transformers with random weights."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=size.vocab, n_positions=size.context, n_embd=size.width, n_layer=size.layers,
        n_head=size.heads, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return transformers.GPT2LMHeadModel(config)


class Training:
    """nanoGPT's loop: AdamW with weight decay of matrices and embeddings, and clipping."""

    def __init__(self, size: Text):
        self.model, self.steps = gpt2(size).train(), 0
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            dict(params=decayed, weight_decay=LM_ADAMW["weight_decay"]),
            dict(params=others, weight_decay=0.0),
        ]
        betas = LM_ADAMW["b1"], LM_ADAMW["b2"]
        self.optimizer = torch.optim.AdamW(groups, lr=LM_ADAMW["lr"], betas=betas)
        self.batches = [torch.from_numpy(tokens).long() for tokens in texts(size)]

    def __call__(self, times: int) -> None:
        for _ in range(times):
            tokens = self.batches[self.steps % len(self.batches)]
            logits = self.model(tokens[:, :-1], use_cache=False).logits
            self.loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            self.optimizer.zero_grad(set_to_none=True)
            self.loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), LM_ADAMW["clip_norm"])
            self.optimizer.step()
            self.steps += 1
