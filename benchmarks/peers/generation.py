"""Text generation, compared with `generate` of transformers with its cache.

The weights are random; with greedy decoding both sides must generate the same tokens.
"""

from typing import Any

import jax
import numpy as np
import torch

from aigc_jax import interop
from aigc_jax.experiment.generate import make_request
from aigc_jax.modalities.text.tokenizers import ByteTokenizer
from aigc_jax.ops.random import numbered_keys
from benchmarks.peers import ours
from benchmarks.peers.sides import Sides, carried, check_count, repeated, size_of
from benchmarks.peers.theirs.lm import gpt2
from benchmarks.peers.work import Text

PROMPT = 16  # tokens


def generation(size: Text, rows: int, new: int) -> Sides:
    """Sides of generating a batch of texts from different prompts.

    Args:
      size: of the model.
      rows: number of texts.
      new: new tokens per text.
    """
    model = gpt2(size).eval()
    spread(model)
    run = ours.lm(size, max_new_tokens=new, temperature=0.0)
    params = {"model": jax.device_put(carried(model, interop.read_hf_folder).params)}
    prompts_NP = np.random.default_rng(0).integers(0, 256, (rows, PROMPT)).astype(np.int32)
    key_N = numbered_keys(jax.random.key(0), np.arange(rows))
    init = run.objective.encode_tokens(list(prompts_NP), new)
    request = make_request(run.objective, run.config.sample, rows, init=init)

    def mine() -> np.ndarray:
        return np.asarray(run.objective.sample(params, {}, key_N, request))

    given = torch.from_numpy(prompts_NP).long()
    asked = dict(attention_mask=torch.ones_like(given), max_new_tokens=new, min_new_tokens=new)

    def peer() -> np.ndarray:
        with torch.no_grad():
            text = model.generate(given, do_sample=False, use_cache=True, **asked)
        return text[:, PROMPT:].numpy()

    notes = [check_count(ours.count(params), size_of(model)), check_texts(mine(), peer())]
    return Sides(repeated(mine), repeated(peer), "; ".join(notes), rows * new)


def spread(model: Any) -> None:
    """Perturbs the initial weights, with which the most probable token repeats the previous one.

    The separator, which would end our texts, becomes improbable.
    """
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
        model.get_input_embeddings().weight[ByteTokenizer.separator] = 0


def check_texts(ours_NT: np.ndarray, theirs_NT: np.ndarray) -> str:
    """Compares the generated tokens; ValueError if they differ."""
    if ours_NT.shape != theirs_NT.shape or (ours_NT != theirs_NT).any():
        raise ValueError(f"ours generated {ours_NT.tolist()}, theirs {theirs_NT.tolist()}")
    return f"{ours_NT.size} tokens equal, {len(np.unique(ours_NT))} different ones"
