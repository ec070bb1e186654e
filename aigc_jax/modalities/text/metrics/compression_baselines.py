"""What simple compressors make of the same held-out text, for scale.

Byte counts are UTF-8. Both are in bits per byte, as the language model's own figure.
"""

import bz2
from collections.abc import Sequence

import numpy as np


def baselines(train: Sequence[str], held_out: Sequence[str]) -> dict[str, float]:
    """bz2 on the held-out text alone, and an order-3 model learned on the training text."""
    text = "".join(held_out).encode("utf-8")
    return {
        "bits_per_byte_bz2": 8 * len(bz2.compress(text, 9)) / len(text),
        "bits_per_byte_order3": ngram_bits("".join(train).encode("utf-8"), text, order=3),
    }


def ngram_bits(train: bytes, text: bytes, order: int) -> float:
    """Bits per byte of an interpolated Witten–Bell model whose contexts are `order` bytes long.

    P_n(c | h) = (count(h c) + T(h) · P_{n−1}(c | h')) / (count(h) + T(h)), with T(h) the number of
    different bytes seen after h, h' the context without its first byte, and P_{−1} uniform (Witten
    & Bell 1991).
    """
    learned = np.frombuffer(train, np.uint8).astype(np.int64)
    coded = np.frombuffer(text, np.uint8).astype(np.int64)
    p = np.full(len(coded), 1 / 256)
    for n in range(min(order + 1, len(learned), len(coded))):
        grams, counts = np.unique(_grams(learned, n), return_counts=True)
        contexts, first = np.unique(grams >> 8, return_index=True)
        kinds = np.diff(np.append(first, len(grams)))
        totals = np.add.reduceat(counts, first)
        seen = _grams(coded, n)
        gram_count = _look_up(grams, counts, seen)
        total, kind = (_look_up(contexts, v, seen >> 8) for v in (totals, kinds))
        # The first n bytes have no such context yet: they keep the shorter one's probability.
        known = np.concatenate([np.zeros(n, bool), total > 0])
        longer = (gram_count + kind * p[n:]) / np.maximum(total + kind, 1)
        p = np.where(known, np.concatenate([p[:n], longer]), p)
    return float(-np.log2(p).mean())


def _grams(data: np.ndarray, n: int) -> np.ndarray:
    """Each run of n + 1 bytes as one number, the last byte lowest."""
    length = max(len(data) - n, 0)
    shifted = [data[i : i + length] << (8 * (n - i)) for i in range(n + 1)]
    return np.sum(shifted, axis=0)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`values` at `wanted` keys; 0 where a key is missing."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
