"""Concatenated documents, cut into windows of equal length.

T is the number of tokens that a window predicts, B the number of windows of a batch.
"""

import functools
from collections.abc import Iterable

import numpy as np

from aigc_jax.modalities.text.token_store import Document, TokenStore
from aigc_jax.modalities.text.tokenizers import Tokenizer


def with_separator(text: str, tokenizer: Tokenizer) -> Document:
    """A text as a document to be concatenated with others: a separator, and the text."""
    store = TokenStore(tokenizer.size)
    store.add([tokenizer.separator])
    store.add_text(text, tokenizer)
    return store.array(), None


def join(documents: Iterable[Document], tokenizer: Tokenizer) -> np.ndarray:
    """Concatenates documents that begin with a separator each, and adds one after the last."""
    store = TokenStore(tokenizer.size)
    for tokens, _ in documents:
        store.add(tokens)
    store.add([tokenizer.separator])
    return store.array()


class TokenWindows:
    """Overlapping windows of T + 1 tokens of a stream, of which T are predicted.

    Window i predicts the `stride` tokens after position i · stride; the T − stride tokens before
    them are context only, with weight 0, unless nothing came before. With stride = T every token is
    predicted once from its own window.

    Args:
      stream: tokens.
      seq_len: T.
      stride: how many new tokens each window predicts, at most T.
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
        """Whole windows, shifted by a random offset in every epoch, so that each token is seen."""
        offset_B = np.array([_epoch_offset(seed, e, self.seq_len) for e in epoch_B.tolist()])
        return self._cut(index_B * self.seq_len + offset_B)

    def _cut(self, start_B: np.ndarray) -> dict[str, np.ndarray]:
        """Windows that begin at these tokens (B,), or at the last one that leaves room for one."""
        last = len(self.stream) - self.seq_len - 1
        at_BT = np.minimum(start_B, last)[:, None] + np.arange(self.seq_len + 1)
        return window(self.stream[at_BT])


@functools.lru_cache(maxsize=16)
def _epoch_offset(seed: int, epoch: int, seq_len: int) -> int:
    return int(np.random.default_rng([seed, epoch]).integers(seq_len))


def window(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """One window (T + 1,) or several (B, T + 1) as examples whose every token is a target."""
    *batch, size = tokens.shape
    weight = np.ones((*batch, size - 1), np.float32)
    return {"tokens": tokens.astype(np.int32), "weight": weight}
