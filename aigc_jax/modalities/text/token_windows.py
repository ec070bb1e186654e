"""Windows of fixed length over concatenated documents.

Shapes: T targets of a window, B windows of a batch.
"""

import functools
from collections.abc import Iterable

import numpy as np

from aigc_jax.modalities.text.token_store import Document, TokenStore
from aigc_jax.modalities.text.tokenizers import Tokenizer


def with_separator(text: str, tokenizer: Tokenizer) -> Document:
    """Encodes a text as a document to be concatenated with others: a separator, and the text."""
    store = TokenStore(tokenizer.size)
    store.add([tokenizer.separator])
    store.add_text(text, tokenizer)
    return store.array(), None


def concatenate(documents: Iterable[Document], tokenizer: Tokenizer) -> np.ndarray:
    """Concatenates documents that start with a separator, and appends a final separator."""
    store = TokenStore(tokenizer.size)
    for tokens, _ in documents:
        store.add(tokens)
    store.add([tokenizer.separator])
    return store.array()


class TokenWindows:
    """Overlapping windows of T + 1 tokens of a stream, with T targets.

    Window i scores the `stride` tokens after position i · stride; the T − stride tokens before them
    are context only, with weight 0, except in the first window. With stride = T the windows do not
    overlap.

    Args:
      stream: tokens.
      seq_len: T.
      stride: new tokens scored per window, at most T; T by default.
    """

    def __init__(self, stream: np.ndarray, seq_len: int, stride: int | None = None):
        self.stream, self.seq_len = stream, seq_len
        self.stride = stride or seq_len
        self.targets = len(stream) - 1

    def __len__(self) -> int:
        first = max(self.targets - self.seq_len, 0)
        return 1 + -(-first // self.stride)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = index * self.stride
        piece = self.stream[start : start + self.seq_len + 1]
        weight = np.zeros(self.seq_len, np.float32)
        weight[0 if index == 0 else self.seq_len - self.stride : len(piece) - 1] = 1
        tokens = np.zeros(self.seq_len + 1, np.int32)
        tokens[: len(piece)] = piece
        return {"tokens": tokens, "weight": weight}

    def epoch_batch(
        self, index_B: np.ndarray, epoch_B: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Returns windows shifted by a random offset in every epoch, so that boundaries vary."""
        offset_B = np.array([_epoch_offset(seed, e, self.seq_len) for e in epoch_B.tolist()])
        return self._cut(index_B * self.seq_len + offset_B)

    def _cut(self, start_B: np.ndarray) -> dict[str, np.ndarray]:
        """Returns windows that start at these tokens (B,), or at the last possible one."""
        last = len(self.stream) - self.seq_len - 1
        at_BT = np.minimum(start_B, last)[:, None] + np.arange(self.seq_len + 1)
        return window_example(self.stream[at_BT])


@functools.lru_cache(maxsize=16)
def _epoch_offset(seed: int, epoch: int, seq_len: int) -> int:
    return int(np.random.default_rng([seed, epoch]).integers(seq_len))


def window_example(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Makes examples of windows (T + 1,) or (B, T + 1) in which every token is a target."""
    *batch, size = tokens.shape
    weight = np.ones((*batch, size - 1), np.float32)
    return {"tokens": tokens.astype(np.int32), "weight": weight}
