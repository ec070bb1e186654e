"""Simple compressors as baselines, against a slow implementation of the same formula."""

import bz2
import collections
import math
import random

import pytest

from aigc_jax.modalities.text.metrics.compression_baselines import baselines, ngram_bits

TRAIN = "The quick brown fox jumps over the lazy dog. 天地玄黄、宇宙洪荒。 the thing then\n" * 3
TEXT = "the then fox; 天地 over, overt! \x00 zzz The quick"


def slow_probability(train, history, byte, order):
    """P(byte | history) of the interpolated Witten–Bell model, from dictionaries of counts."""
    p = 1 / 256
    for n in range(min(order, len(history)) + 1):
        context = history[len(history) - n :]
        seen = collections.Counter(
            train[i] for i in range(n, len(train)) if train[i - n : i] == context
        )
        total, kinds = sum(seen.values()), len(seen)
        if not total:
            break
        p = (seen[byte] + kinds * p) / (total + kinds)
    return p


def slow_bits(train, text, order):
    bits = [-math.log2(slow_probability(train, text[:i], c, order)) for i, c in enumerate(text)]
    return sum(bits) / len(bits)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_ngram_bits_agree_with_dictionaries(order):
    train, text = TRAIN.encode(), TEXT.encode()
    assert ngram_bits(train, text, order) == pytest.approx(slow_bits(train, text, order), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_ngram_bits_agree_on_random_bytes_of_a_small_alphabet(seed):
    """Contexts that were seen often, once and never, in one text."""
    rng = random.Random(seed)
    train = bytes(rng.choices(b"abc", [5, 3, 1], k=rng.randrange(20, 120)))
    text = bytes(rng.choices(b"abcd\xff", [5, 3, 1, 1, 1], k=60))
    assert ngram_bits(train, text, 3) == pytest.approx(slow_bits(train, text, 3), abs=1e-9)


@pytest.mark.parametrize(
    "train, text", [(b"ab", b"abcabc"), (b"", b"abc"), (b"abcabc", b"ab"), (b"a", b"a")]
)
def test_ngram_bits_of_texts_shorter_than_the_contexts(train, text):
    assert ngram_bits(train, text, 3) == pytest.approx(slow_bits(train, text, 3), abs=1e-9)


@pytest.mark.parametrize("history", [b"the ", b"qqqq", b"xth", "天".encode(), b"\x00\x00\x00"])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_probabilities_of_the_next_byte_sum_to_one(history, order):
    """P(c | h) is what adding c to the text h adds to its bits."""
    train = TRAIN.encode()
    before, total = ngram_bits(train, history, order) * len(history), 0.0
    for c in range(256):
        text = history + bytes([c])
        total += 2 ** (before - ngram_bits(train, text, order) * len(text))
    assert total == pytest.approx(1, abs=1e-9)


def test_bits_count_utf8_bytes_and_order_helps():
    held_out = ["天地玄黄、", "宇宙洪荒。"]
    result = baselines([TRAIN], held_out)
    assert result.keys() == {"bits_per_byte_bz2", "bits_per_byte_order3"}
    data = "天地玄黄、宇宙洪荒。".encode()
    assert result["bits_per_byte_bz2"] == 8 * len(bz2.compress(data, 9)) / len(data)
    assert result["bits_per_byte_order3"] == ngram_bits(TRAIN.encode(), data, 3)
    bits = [ngram_bits(TRAIN.encode(), data, order) for order in range(4)]
    assert bits == sorted(bits, reverse=True) and 0 < bits[-1] < bits[0] / 2 < 4


def test_documents_are_taken_together():
    split = baselines(["The quick ", "brown fox"], ["The ", "fox"])
    assert split == baselines(["The quick brown fox"], ["The fox"])
    assert all(type(value) is float for value in split.values())
