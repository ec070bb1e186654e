"""Tokenizers: bytes, characters, and BPE that is learned here."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from helpers.hostile import refusal
from helpers.small_tokenizers import CHARACTERS, DOCUMENTS, KINDS, LIBRARIES, TEXT, kind, trained
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.modalities.text import tokenizers as ours
from aigc_jax.modalities.text.hf_tokenizer import END, IM_END, IM_START, LibraryTokenizer
from aigc_jax.modalities.text.token_bytes import byte_alphabet
from aigc_jax.modalities.text.tokenizers import ByteTokenizer, CharTokenizer, make_tokenizer

OWN = ("byte", "char", "trained")
TEXTS = ["", *DOCUMENTS, "<|endoftext|>", "\n\n\r\n", " ", "🙂", "人工 智能"]
few = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("name", KINDS)
def test_tokenizers_have_the_whole_protocol(name):
    tokenizer = kind(name)
    assert tokenizer.name in ("byte", "char", "library")
    assert tokenizer.separator in tokenizer.stops
    assert all(0 <= i < tokenizer.size for i in (*tokenizer.stops, *tokenizer.prefix))
    tokens = tokenizer.encode("a cat")
    assert tokens.dtype == np.int32 and tokens.ndim == 1
    assert tokenizer.encode("").shape == (0,) and tokenizer.encode("").dtype == np.int32
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.size,)
    assert not lengths[list(tokenizer.stops)].any()
    assert ours.from_json(json.loads(json.dumps(tokenizer.to_json()))).to_json() == (
        tokenizer.to_json()
    )


def test_byte_and_char_keep_their_ids():
    byte, char = ByteTokenizer(), CharTokenizer(["a", "中"])
    assert (byte.size, byte.separator, byte.stops, byte.prefix) == (257, 256, (256,), (256,))
    assert (char.size, char.separator, char.stops, char.prefix) == (3, 2, (2,), (2,))
    assert byte.mask is None and byte.suffix == ()
    assert byte.special("<|x|>") == tuple(b"<|x|>")


# Learned here --------------------------------------------------------------------------------


@few
@given(TEXT)
def test_any_text_comes_back_and_its_bytes_add_up(text):
    tokenizer = trained()
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.byte_lengths()[tokens].sum() == len(text.encode("utf-8"))
    assert not set(tokens.tolist()) & {0, 1, 2}  # nothing that is written becomes special


@pytest.mark.parametrize("name", LIBRARIES)
def test_nothing_that_is_written_becomes_special(name):
    tokenizer = kind(name)
    added = tokenizer.to_library().get_added_tokens_decoder()
    special = {i for i, token in added.items() if "unk" not in token.content.lower()}
    words = st.sampled_from([token.content for token in added.values()])

    @few
    @given(st.lists(st.one_of(words, TEXT), max_size=5).map("".join))
    def check(text):
        assert not set(tokenizer.encode(text).tolist()) & special

    check()


def test_special_tokens_are_spelled_as_other_words_are():
    tokenizer = LibraryTokenizer.train(["a<|b|> a<|c|>\n" * 5], 300)
    tokens = tokenizer.encode("<|im_end|>").tolist()
    assert tokenizer.text(tokens[:1]) == "<|" and tokenizer.text(tokens[-1:]) == "|>"


def test_no_normalizer_makes_a_special_token():
    library = LIBRARIES["metaspace"]()
    library.normalizer = tokenizers.normalizers.NFKC()
    tokenizer = LibraryTokenizer(library, separator=1)
    assert tokenizer.encode("a＜/s＞a").tolist() == [3, 7, 7]


def test_learned_tokens_are_longer_than_bytes():
    tokenizer = trained()
    assert 259 < tokenizer.size <= 400
    assert len(tokenizer.encode(" the")) == 1 and len(tokenizer.encode("人工")) == 1
    assert tokenizer.byte_lengths().max() > 3
    # What follows no space is another word: none is put in front.
    assert tokenizer.encode("the").tolist() != tokenizer.encode(" the").tolist()


def test_special_tokens_of_a_learned_tokenizer():
    tokenizer = trained()
    assert [tokenizer.special(t) for t in (END, IM_START, IM_END)] == [(0,), (1,), (2,)]
    assert (tokenizer.separator, tokenizer.stops, tokenizer.prefix) == (0, (0, 2), (0,))
    assert tokenizer.special("<|none|>") == tuple(tokenizer.encode("<|none|>").tolist())
    a = tokenizer.encode("a").tolist()
    assert tokenizer.decode([1, *a, 2, *a]) == "a"  # special tokens are not shown
    assert tokenizer.text([1, *a, 2, *a]) == "aa"


LEARN = """
import sys
sys.path[:0] = {path!r}
from helpers.small_tokenizers import trained
print(trained(400).to_json()["library"]["json"])
"""


@pytest.mark.parametrize("parallel", ["false", "true"])
def test_the_same_documents_give_the_same_tokenizer(parallel):
    """In another process too, with one thread or several."""
    script = LEARN.format(path=sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"TOKENIZERS_PARALLELISM": parallel, "RAYON_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # no progress bar where nobody sees it
    assert done.stdout.rstrip("\n") == trained().to_json()["library"]["json"]
    assert LibraryTokenizer.train(DOCUMENTS, 400).to_json() == trained().to_json()


@pytest.mark.parametrize("size", [-1, 0, 258, 1 << 30])
def test_a_vocabulary_must_hold_the_bytes(size):
    message = refusal(make_tokenizer, "bpe", DOCUMENTS, size)
    assert f"data.vocab_size={size} " in message and "259" in message


def test_the_smallest_vocabulary_is_that_of_bytes():
    tokenizer = make_tokenizer("bpe", DOCUMENTS, 259)
    assert tokenizer.size == 259
    assert len(tokenizer.encode(" the 人")) == 8
    assert make_tokenizer("bpe", [], 300).size == 259


@pytest.mark.parametrize("terminal", [False, True])
def test_learning_shows_its_progress_on_a_terminal_only(monkeypatch, terminal):
    options, trainer = [], tokenizers.trainers.BpeTrainer
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(
        tokenizers.trainers, "BpeTrainer", lambda **o: options.append(o) or trainer(**o)
    )
    LibraryTokenizer.train(["a"], 300)
    assert [o["show_progress"] for o in options] == [terminal]


def test_the_byte_alphabet_is_the_librarys():
    assert sorted(byte_alphabet()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert [byte_alphabet()[b] for b in (0x20, 0x0A, 0x41, 0xFF)] == ["Ġ", "Ċ", "A", "ÿ"]


@few
@given(st.data())
def test_byte_level_text_is_the_librarys(data):
    """Our table of bytes decodes as the library does, broken UTF-8 too."""
    tokenizer = trained()
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=20))
    assert tokenizer.text(ids) == tokenizer.to_library().decode(ids, skip_special_tokens=True)


def test_a_word_that_was_added_to_a_byte_level_vocabulary():
    library = trained().to_library()
    library.add_tokens(["智 能", "<think>"])  # one of them outside the byte alphabet
    tokenizer = LibraryTokenizer(library, separator=0)
    tokens = tokenizer.encode("a<think>智 能b")
    assert len(tokens) == 4 and tokenizer.decode(tokens) == "a<think>智 能b"
    assert tokenizer.byte_lengths()[tokens].tolist() == [1, 7, 7, 1]
    assert tokenizer.text(tokens) == library.decode(tokens.tolist())


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("text", ["a\ud800", "\udfff"])
def test_text_that_is_no_unicode_is_refused(name, text):
    message = refusal(kind(name).encode, text)
    assert "not valid Unicode" in message or "not in this model's vocabulary" in message


# Decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_decoding_takes_any_tokens(name):
    tokenizer = kind(name)
    a = tokenizer.encode("cat").tolist()
    unknown = [-1, tokenizer.size, tokenizer.size + 1000]
    assert tokenizer.decode([*unknown, *a, *unknown]) == tokenizer.decode(a) == "cat"
    assert tokenizer.decode(np.array([*a, tokenizer.separator, *a])) == "cat"
    assert tokenizer.decode([]) == ""


def test_bytes_of_tokens_that_depend_on_others():
    """Those that they add between two words."""
    tokenizer = kind("wordpiece")
    lengths, vocabulary = tokenizer.byte_lengths(), tokenizer.to_library().get_vocab()
    for token, length in {"[SEP]": 0, ".": 1, "cat": 4, "##ting": 4, "人": 4}.items():
        assert lengths[vocabulary[token]] == length
    tokenizer = kind("byte_fallback")
    text = " cat中\n cat"  # its first space is the one that is put in front
    assert tokenizer.byte_lengths()[tokenizer.encode(text[1:])].sum() == len(text.encode())
    tokenizer = kind("metaspace")
    assert tokenizer.byte_lengths().tolist() == [0, 0, 0, 1, 4, 4, 1, 1, 2, 3, 3]
    assert kind("suffixes").byte_lengths().tolist() == [0, 0, 1, 1, 2, 2, 2, 4, 4]


# For others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", OWN)
def test_the_library_makes_the_same_tokens(name, text):
    tokenizer = CharTokenizer(sorted({*CHARACTERS, *"".join(TEXTS)})) if name == "char" else None
    tokenizer = tokenizer or kind(name)
    library = tokenizers.Tokenizer.from_str(tokenizer.to_library().to_str())
    library.encode_special_tokens = True
    ids = tokenizer.encode(text).tolist()
    assert library.encode(text, add_special_tokens=False).ids == ids
    assert library.decode(ids) == text
    assert library.encode(text).ids == [*tokenizer.prefix, *ids]
    assert library.get_vocab_size() == tokenizer.size


@pytest.mark.parametrize("name", OWN)
def test_exported_files_are_readable(tmp_path, name):
    tokenizer = kind(name)
    tokenizer.to_library().save(str(tmp_path / "tokenizer.json"))
    again = make_tokenizer(f"file:{tmp_path}", [])
    for key in ("size", "separator", "stops", "prefix", "suffix", "mask"):
        assert getattr(again, key) == getattr(tokenizer, key)
    text = "the cat\n人工 🙂"
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.decode(again.encode(text)) == text
    added = again.to_library().get_added_tokens_decoder()
    assert added[tokenizer.separator].special and added[tokenizer.separator].content == END


def test_a_character_outside_the_vocabulary_is_an_error_in_the_library_too():
    with pytest.raises(Exception, match="Missing"):
        CharTokenizer(["a"]).to_library().encode("b")


# Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bite", "did you mean 'byte'?"),
        ("chars", "did you mean 'char'?"),
        ("", "known are bpe, byte, char, file:PATH, workdir:DIR"),
        ("file:", "'file:PATH'"),
        ("byte:x", "'byte'"),
        ("folder:x", "known are"),
        ("wörd\n", "known are"),
    ],
)
def test_an_unknown_name_is_refused(name, hint):
    message = refusal(make_tokenizer, name, DOCUMENTS, 300)
    assert message.startswith("there is no data.tokenizer '") and hint in message


def test_names():
    assert make_tokenizer("byte", []).name == "byte"
    assert make_tokenizer("char", ["ba"]).characters == ["a", "b"]
    assert make_tokenizer("bpe", DOCUMENTS, 300).name == "library"
