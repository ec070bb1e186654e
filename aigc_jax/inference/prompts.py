"""Prompts as padded arrays. Shapes: N prompts, P tokens of the longest."""

from collections.abc import Sequence

import numpy as np

SHORTEST_BUCKET = 16


def pad_prompts(prompts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """`SampleRequest.init`: int32 "tokens" (N, P), padded with 0, and "length" (N,)."""
    length_N = np.array([len(prompt) for prompt in prompts], np.int32)
    token_NP = np.zeros((len(prompts), length_N.max()), np.int32)
    for row, prompt in zip(token_NP, prompts, strict=True):
        row[: len(prompt)] = prompt
    return {"tokens": token_NP, "length": length_N}


def bucket(length: int) -> int:
    """The smallest power of two that is not less; lengths are padded to it, so that few compile."""
    return max(1 << max(length - 1, 0).bit_length(), SHORTEST_BUCKET)
