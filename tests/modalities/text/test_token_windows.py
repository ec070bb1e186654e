"""Tokenizers, token windows and the split of documents."""

import collections
import random

import numpy as np
import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import spec_from_json
from aigc_jax.modalities.text.document_split import cut_document, split_documents
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.token_windows import TokenWindows, concatenate, with_separator
from aigc_jax.modalities.text.tokenizers import ByteTokenizer, CharTokenizer, make_tokenizer

TEXTS = [
    "",
    "plain ASCII, with a tab\tand lines\r\nof both kinds\n",
    "Straße, naïve, ½",
    "人工智能生成内容、四个模型。",
    "🙂 a\u0301 \u2028 and \x00",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["byte", "char"])
def test_decode_inverts_encode(name, text):
    tokenizer = make_tokenizer(name, TEXTS)
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32 and tokens.ndim == 1
    assert ((tokens >= 0) & (tokens < tokenizer.separator)).all()
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode(tokens.tolist()) == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["byte", "char"])
def test_byte_lengths_add_up_to_the_bytes_of_the_text(name, text):
    tokenizer = make_tokenizer(name, TEXTS)
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.size,)
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode("utf-8"))
    assert lengths[tokenizer.separator] == 0


def joined(texts, tokenizer):
    return concatenate([with_separator(text, tokenizer) for text in texts], tokenizer)


def test_byte_tokens_are_the_utf8_bytes():
    assert ByteTokenizer().encode("aé中").tolist() == list("aé中".encode())
    assert ByteTokenizer().size == 257 and ByteTokenizer().separator == 256


@pytest.mark.parametrize("name", ["byte", "char"])
def test_decode_stops_at_the_first_separator(name):
    tokenizer = make_tokenizer(name, ["ab"])
    a, b = tokenizer.encode("ab")
    end = tokenizer.separator
    assert tokenizer.decode([a, b, end, a, end]) == "ab"
    assert tokenizer.decode([end, a]) == ""


def test_broken_utf8_becomes_a_replacement_character():
    tokens = ByteTokenizer().encode("a中b")
    assert ByteTokenizer().decode(tokens[:3]) == "a�"
    assert ByteTokenizer().decode([0x61, 0xFF, 0x62]) == "a�b"


def test_char_vocabulary_is_sorted_and_without_repeats():
    tokenizer = CharTokenizer.of(["cab", "中a", ""])
    assert tokenizer.characters == ["a", "b", "c", "中"]
    assert tokenizer.encode("中ab").tolist() == [3, 0, 1]
    assert (tokenizer.separator, tokenizer.size) == (4, 5)


@pytest.mark.parametrize("character", ["z", "文", "\n"])
def test_a_character_outside_the_vocabulary_is_named(character):
    tokenizer = CharTokenizer.of(["abc中"])
    with pytest.raises(UserError) as caught:
        tokenizer.encode(f"ab{character}c")
    assert f"the character {character!r} is not in" in str(caught.value)
    assert "of 4 characters" in str(caught.value)


@pytest.mark.parametrize("name", ["byte", "char"])
def test_a_text_spec_survives_json(name):
    spec = TextSpec(make_tokenizer(name, ["aé中"]), 7)
    again = spec_from_json(spec.to_json())
    assert again.to_json() == spec.to_json()
    assert again.tokenizer.encode("é中a").tolist() == spec.tokenizer.encode("é中a").tolist()
    assert again.example_batch(3)["tokens"].shape == (3, 8)
    assert again.example_batch(3)["weight"].shape == (3, 7)


def test_join_puts_a_separator_before_each_document_and_after_the_last():
    tokenizer = CharTokenizer.of(["ab"])
    assert joined(["ab", "", "b"], tokenizer).tolist() == [2, 0, 1, 2, 2, 1, 2]
    assert joined([], tokenizer).tolist() == [2]
    assert joined(["a"], tokenizer).dtype == np.uint16  # as small as the vocabulary allows


# Windows -------------------------------------------------------------------------------------

SIZES = [
    (length, seq_len, stride)
    for seq_len in (1, 2, 3, 4, 7)
    for stride in (None, *range(1, seq_len + 1))
    for length in range(2, 25)
]


def test_every_target_is_predicted_exactly_once():
    """For all small sizes: with weight, targets 1 … N − 1 once each and in order."""
    for length, seq_len, stride in SIZES:
        # Distinct tokens, none of them 0, so that a token tells its place.
        windows = TokenWindows(np.arange(1, length + 1, dtype=np.int32), seq_len, stride)
        predicted = []
        for i in range(len(windows)):
            window = windows[i]
            assert window["tokens"].shape == (seq_len + 1,)
            assert window["tokens"].dtype == np.int32
            assert window["weight"].shape == (seq_len,)
            assert window["weight"].dtype == np.float32
            assert set(window["weight"].tolist()) <= {0.0, 1.0}
            predicted += window["tokens"][1:][window["weight"] > 0].tolist()
        assert predicted == list(range(2, length + 1)), (length, seq_len, stride)


def test_a_window_is_a_run_of_the_stream_then_zeros():
    for length, seq_len, stride in SIZES:
        stream = np.arange(1, length + 1, dtype=np.int32)
        windows = TokenWindows(stream, seq_len, stride)
        for i in range(len(windows)):
            start = i * (stride or seq_len)
            expected = stream[start : start + seq_len + 1].tolist()
            expected += [0] * (seq_len + 1 - len(expected))
            assert windows[i]["tokens"].tolist() == expected


def test_predictions_after_the_first_window_have_their_context():
    """A target has at least T − stride tokens before those that its own window predicts."""
    for length, seq_len, stride in SIZES:
        windows = TokenWindows(np.arange(1, length + 1, dtype=np.int32), seq_len, stride)
        context = seq_len - (stride or seq_len)
        for i in range(1, len(windows)):
            weight = windows[i]["weight"]
            assert not weight[:context].any() and weight[context] == 1


def test_no_window_is_without_a_target():
    for length, seq_len, stride in SIZES:
        windows = TokenWindows(np.arange(length, dtype=np.int32), seq_len, stride)
        assert all(windows[i]["weight"].any() for i in range(len(windows)))


# Documents -----------------------------------------------------------------------------------

LINES = "".join(f"line {i} of a text\n" for i in range(200))
DOCUMENTS = {
    "lines": LINES,
    "no final newline": LINES + "end",
    "one long line": "abcdefghij" * 300,
    "short": "ab",
    "one character": "a",
    "mixed line ends": "a\r\nb\rc\n\n\nd\x0be\u2028f\x85g" * 20,
    "Chinese": "天地玄黄、宇宙洪荒。\n" * 50,
    "uneven": "x\n" * 100 + "y" * 5000 + "\n" + "z\n" * 100,
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 20, 100])
def test_cut_loses_nothing(name, pieces):
    parts = cut_document(DOCUMENTS[name], pieces)
    assert "".join(parts) == DOCUMENTS[name]
    assert all(parts) and len(parts) <= pieces + 1


def test_cut_loses_nothing_however_the_sizes_round():
    for length in range(1, 120):
        document = "".join(f"{chr(97 + i % 26)}\n" for i in range(length))
        for pieces in range(1, length + 1):
            assert "".join(cut_document(document, pieces)) == document


@pytest.mark.parametrize("pieces", [2, 7, 20])
def test_cut_makes_about_equal_pieces_at_line_ends(pieces):
    parts = cut_document(LINES, pieces)
    assert len(parts) == pieces
    assert all(part.endswith("\n") for part in parts)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 2 * len("line 100 of a text\n")


def make_documents(count, seed=0):
    """Different documents, none of them long enough to be cut."""
    rng = random.Random(seed)
    return [f"{i}:" + "x" * rng.randrange(20, 30) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_is_disjoint_complete_and_large_enough(fraction, seed):
    documents = make_documents(60)
    train, held_out = split_documents(documents, fraction, seed)
    assert sorted(train + held_out) == sorted(documents)
    assert not set(train) & set(held_out)
    total, held = sum(map(len, documents)), sum(map(len, held_out))
    assert fraction * total <= held < fraction * total + max(map(len, documents))


def test_split_is_fixed_by_its_seed():
    documents = make_documents(60)
    assert split_documents(documents, 0.2, 3) == split_documents(documents, 0.2, 3)
    assert split_documents(documents, 0.2, 3) != split_documents(documents, 0.2, 4)


def test_split_keeps_the_order_of_the_documents():
    documents = make_documents(60)
    for part in split_documents(documents, 0.3, 0):
        assert part == sorted(part, key=documents.index)


@pytest.mark.parametrize("name", ["lines", "one long line", "Chinese"])
def test_one_long_document_is_cut_before_it_is_split(name):
    text = DOCUMENTS[name]
    train, held_out = split_documents([text], 0.25, 0)
    assert sum(map(len, train)) + sum(map(len, held_out)) == len(text)
    assert 0.25 * len(text) <= sum(map(len, held_out)) < 0.35 * len(text)
    pieces = collections.Counter(train + held_out)
    assert pieces == collections.Counter(cut_document(text, 20))


def test_no_fraction_holds_nothing_out():
    documents = make_documents(60)
    assert split_documents(documents, 0.0, 0) == (documents, [])
