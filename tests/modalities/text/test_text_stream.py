"""Text as its tokens come: all of it, and as early as can be."""

import numpy as np
import pytest
from helpers.small_tokenizers import CHARACTERS, KINDS, kind, trained
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.modalities.text.tokenizers import TextStream

few = settings(max_examples=60, deadline=None)


def any_ids(tokenizer):
    """Tokens of all kinds, and some that there are not, as models can be wider."""
    size = tokenizer.size
    return st.lists(st.one_of(st.integers(-2, size + 5), st.integers(0, size - 1)), max_size=25)


def written(tokenizer):
    """The tokens of a text in which one of any kind comes up now and then."""
    words = CHARACTERS if tokenizer.name == "char" else ["a", " cat", " 人", "é", "中🙂", "\n"]
    text = st.lists(st.sampled_from(words), max_size=6).map("".join)
    parts = st.one_of(text.map(lambda t: tokenizer.encode(t).tolist()), any_ids(tokenizer))
    return st.lists(parts, max_size=4).map(lambda lists: [t for ids in lists for t in ids])


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_of_tokens_is_the_text_of_all(name):
    tokenizer = kind(name)

    @few
    @given(
        st.one_of(any_ids(tokenizer), written(tokenizer)),
        st.one_of(st.just([1] * 99), st.lists(st.integers(0, 6), max_size=30)),
    )
    def check(ids, sizes):
        stream, text, rest = TextStream(tokenizer), "", ids
        for size in [*sizes, len(ids)]:
            text += stream.feed(rest[:size])
            rest = rest[size:]
        assert text + stream.finish() == tokenizer.decode(ids)
        assert stream.feed(ids) == stream.finish() == ""

    check()


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_of_text_is_the_text(name):
    """Of what the vocabulary knows; whole characters come at once."""
    tokenizer, stream = kind(name), TextStream(kind(name))
    text = "a cat cat 人"
    parts = [stream.feed([t]) for t in tokenizer.encode(text)]
    assert len([p for p in parts if p]) > 2
    assert "".join(parts) + stream.finish() == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("name", ["byte", "trained", "nested"])
def test_a_character_waits_for_its_last_byte(name):
    stream, tokenizer = TextStream(kind(name)), kind(name)
    tokens = np.concatenate([tokenizer.encode(c) for c in "ß中🙏a"])
    parts = [stream.feed([t]) for t in tokens]
    assert [p for p in parts if p] == [*"ß中🙏a"]
    assert stream.feed(tokens[:1]) == "" and stream.finish() == "�"


def test_invalid_token_ids_do_not_change_a_stream():
    stream = TextStream(kind("holes"))
    assert [stream.feed([t]) for t in (5, 0, 6)] == ["a", "", " cat"]


def test_a_stream_of_byte_tokens_waits_for_their_end():
    """One wrong byte makes all of a run unreadable, so none is shown before."""
    tokenizer = kind("byte_fallback")
    byte = tokenizer.encode("中").tolist()[1:]
    assert len(byte) == 3 and set(byte) <= tokenizer.byte_tokens
    stream = TextStream(tokenizer)
    assert [stream.feed([t]) for t in byte] == ["", "", ""]
    assert stream.feed(tokenizer.encode(" cat")[-1:]) == "中 cat"


def test_a_stream_ends_at_a_stop():
    tokenizer = trained()
    stream, a = TextStream(tokenizer), tokenizer.encode("a").tolist()
    assert stream.feed([*a, 2, *a]) == "a"
    assert stream.feed(a) == "" and stream.finish() == ""
