"""Tokenizers from files and checkpoints: what they say, and what is refused."""

import json
import os

import numpy as np
import pytest
import tokenizers
from helpers.hostile import JSON, damaged, refusal
from helpers.small_tokenizers import LIBRARIES, TEXT, byte_fallback, metaspace, trained, wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import spec_from_json
from aigc_jax.modalities.text import tokenizer_files
from aigc_jax.modalities.text import tokenizers as ours
from aigc_jax.modalities.text.hf_tokenizer import END, IM_END, LibraryTokenizer
from aigc_jax.modalities.text.spec import TextSpec


def gpt2():
    """Byte-level, with the special tokens 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>."""
    library = trained().to_library()
    library.post_processor = tokenizers.processors.ByteLevel()
    return library


def folder(path, library, **files):
    """A Hugging Face folder; the files by their names without .json."""
    library.save(str(path / "tokenizer.json"))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return str(path)


def load(*args, **files):
    return tokenizer_files.read_tokenizer(folder(*args, **files))


# What the files say --------------------------------------------------------------------------


def test_a_plain_folder(tmp_path):
    tokenizer = load(tmp_path, gpt2(), tokenizer_config={"eos_token": END, "bos_token": END})
    assert (tokenizer.separator, tokenizer.stops) == (0, (0, 2))
    assert tokenizer.prefix == tokenizer.suffix == () and tokenizer.mask is None
    assert tokenizer.size == trained().size
    assert tokenizer.encode("the cat").tolist() == trained().encode("the cat").tolist()


def test_a_file_by_itself_ends_texts_as_usual(tmp_path):
    folder(tmp_path, byte_fallback(), config={"eos_token_id": 0})
    tokenizer = tokenizer_files.read_tokenizer(str(tmp_path / "tokenizer.json"))
    assert (tokenizer.separator, tokenizer.stops, tokenizer.prefix) == (2, (2,), (1,))
    assert (
        tokenizer_files.read_tokenizer(str(tmp_path)).separator == 0
    )  # the folder says something else


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path, gpt2())
    assert ours.make_tokenizer("file:~/tokenizer.json", []).separator == 0


@pytest.mark.parametrize(
    ("files", "separator", "stops"),
    [
        (dict(tokenizer_config={"eos_token": {"content": "t", "lstrip": False}}), "t", "t"),
        (dict(special_tokens_map={"eos_token": "t"}), "t", "t"),
        (dict(tokenizer_config={"eos_token": None}, special_tokens_map={"eos_token": "t"}),
         "t", "t"),
        (dict(tokenizer_config={"eos_token": "unknown"}), END, END),
        (dict(config={"eos_token_id": 70}), 70, 70),
        (dict(generation_config={"eos_token_id": [70, 71]}), 70, (70, 71)),
        (dict(config={"eos_token_id": [70]}, generation_config={"eos_token_id": 71}), 70, (70, 71)),
        (dict(config={"eos_token_id": [99999, -1, 70]}), 70, 70),
        (dict(config={"eos_token_id": None}, tokenizer_config={"eos_token": "t"}), "t", "t"),
        (dict(tokenizer_config={"eos_token": "t"}, generation_config={"eos_token_id": 70}),
         "t", ("t", 70)),
        # A model for chat: a turn's end is not a document's.
        (dict(tokenizer_config={"eos_token": IM_END}, generation_config={"eos_token_id": [2, 70]}),
         END, (END, IM_END, 70)),
    ],
)  # fmt: skip
def test_the_tokens_that_end_a_text(tmp_path, files, separator, stops):
    library = gpt2()
    ids = [i if isinstance(i, int) else library.token_to_id(i)
           for i in (separator, *(stops if isinstance(stops, tuple) else (stops,)))]  # fmt: skip
    tokenizer = load(tmp_path, library, **files)
    assert tokenizer.separator == ids[0]
    assert set(tokenizer.stops) == {*ids[1:], 2} and len(set(tokenizer.stops)) == len(
        tokenizer.stops
    )
    assert not tokenizer.byte_lengths()[list(tokenizer.stops)].any()


def test_a_tokenizer_for_masked_models(tmp_path):
    tokenizer = load(tmp_path, wordpiece())
    assert (tokenizer.prefix, tokenizer.suffix) == ((2,), (3,))
    assert (tokenizer.separator, tokenizer.stops, tokenizer.mask) == (3, (3,), 4)
    assert tokenizer.encode("cat sat").tolist() == [8, 9]
    assert tokenizer.decode([2, 8, 10, 9, 5]) == "cats sat."
    assert tokenizer.decode([*tokenizer.prefix, 8, *tokenizer.suffix, 9]) == "cat"
    assert tokenizer.special("[MASK]") == (4,)
    named = load(tmp_path, wordpiece(), tokenizer_config={"mask_token": {"content": "a"}})
    assert named.mask == 7


def test_tokens_around_a_text(tmp_path):
    tokenizer = load(tmp_path, metaspace())
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.separator) == ((), (1,), 1)
    library = byte_fallback()
    assert load(tmp_path, library).prefix == (1,)
    library.post_processor = tokenizers.processors.TemplateProcessing(single="$A", pair="$A $B")
    settings = {"bos_token": "<s>", "add_bos_token": True}
    assert load(tmp_path, library, tokenizer_config=settings).prefix == (1,)
    assert load(tmp_path, library, tokenizer_config={"bos_token": "<s>"}).prefix == ()


def test_special_words_of_a_vocabulary_are_cut(tmp_path):
    """SentencePiece's vocabularies have them as words like any other."""
    tokenizer = load(tmp_path, metaspace())
    assert tokenizer.special("</s>") == (1,)
    library = tokenizer.to_library()
    library.encode_special_tokens = True
    assert 1 in library.encode("a</s>", add_special_tokens=False).ids
    assert tokenizer.encode("a</s>").tolist() == [3, 7, 2, 3, 2, 6, 2]


def test_settings_that_change_tokens_are_off(tmp_path):
    library = gpt2()
    library.enable_truncation(3)
    library.enable_padding(length=40)
    library.model.dropout = 0.9
    tokenizer, text = load(tmp_path, library), "the cat saw the other cat"
    assert tokenizer.suffix == ()
    for _ in range(3):
        assert tokenizer.encode(text).tolist() == trained().encode(text).tolist()
    library.model.dropout = None
    value = tokenizer.to_json()["library"] | {"json": library.to_str()}
    again = LibraryTokenizer.from_json(value)  # a checkpoint may have them too
    assert again.encode(text).tolist() == trained().encode(text).tolist()


def test_a_vocabulary_with_holes(tmp_path):
    model = tokenizers.models.WordLevel({"a": 0, "b": 7, "</s>": 3}, unk_token="a")
    tokenizer = load(tmp_path, tokenizers.Tokenizer(model))
    assert (tokenizer.size, tokenizer.separator) == (8, 3)
    assert tokenizer.decode([0, 5, 7]) == "a b"
    assert tokenizer.byte_lengths().tolist() == [2, 0, 0, 0, 0, 0, 0, 2]


# What is refused -----------------------------------------------------------------------------


def test_invalid_tokenizer_files_are_rejected(tmp_path):
    for path, said in (
        (tmp_path / "none", "cannot be read"),
        (tmp_path, "tokenizer.json"),
    ):
        assert said in refusal(tokenizer_files.read_tokenizer, str(path))
    file = tmp_path / "tokenizer.json"
    for content in (b"", b"{}", b"[" * 10**5, b"\xff", b'{"model": 1}', b"null"):
        file.write_bytes(content)
        assert str(file) in refusal(tokenizer_files.read_tokenizer, str(file))
    os.unlink(file)
    os.mkfifo(file)
    assert "not a regular file" in refusal(tokenizer_files.read_tokenizer, str(file))


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    model = tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    assert "no token ends a text" in refusal(load, tmp_path, tokenizers.Tokenizer(model))
    assert load(tmp_path, tokenizers.Tokenizer(model), config={"eos_token_id": 1}).stops == (1,)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config", "no JSON"),
        ("special_tokens_map", "[" * 10**5),
        ("config", "[1]"),
        ("generation_config", "null"),
        ("config", '{"eos_token_id": "1"}'),
        ("config", '{"eos_token_id": true}'),
        ("config", '{"eos_token_id": [1, null]}'),
        ("config", '{"eos_token_id": 1.0}'),
        ("generation_config", '{"eos_token_id": {"a": 1}}'),
        ("tokenizer_config", '{"eos_token": 1}'),
        ("tokenizer_config", '{"eos_token": {"content": ["a"]}}'),
        ("tokenizer_config", '{"mask_token": [1]}'),
        ("tokenizer_config", '{"add_bos_token": true, "bos_token": 3}'),
        ("tokenizer_config", '{"eos_token": "\\ud800"}'),
    ],
)
def test_settings_that_are_none_are_refused(tmp_path, name, content):
    path = folder(tmp_path, gpt2())
    (tmp_path / f"{name}.json").write_text(content)
    assert str(tmp_path) in refusal(tokenizer_files.read_tokenizer, path)


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def changed(**parts):
    """A description of data whose tokenizer's JSON has other parts."""
    value = json.loads(trained().to_json()["library"]["json"])
    return described(json=json.dumps(value | parts))


def described(**changes):
    value = TextSpec(trained(), 8).to_json()
    return value | {"library": value["library"] | changes}


@pytest.mark.parametrize(
    "value",
    [
        described() | {"library": None},
        described() | {"library": [1]},
        described() | {"library": {}},
        *(described(json=j) for j in (None, 1, {}, "", "{}", "[" * 10**5, "\ud800", "null")),
        *(described(separator=i) for i in (-1, 10**6, 10**30, None, "0", True, 0.0, [0])),
        *(described(stops=s) for s in (None, 0, "02", [-1], [10**6], [True], [None], [[0]])),
        *(described(prefix=s) for s in (None, 0, {}, ["a"], [10**6], [0] * 17)),
        *(described(suffix=s) for s in (None, "", [2.0], [0] * 10**6)),
        *(described(mask=i) for i in (-1, 10**6, "1", True, [])),
        changed(model={"type": "WordLevel", "vocab": {}, "unk_token": "a"}, added_tokens=[]),
        changed(model={"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}),
        changed(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
        changed(model={"type": "Unigram", "vocab": [], "unk_id": 0}),
        changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),  # a panic
        changed(pre_tokenizer=split("(")),
        changed(decoder={"type": "None"}),
    ],
    ids=lambda value: ascii(value)[-50:],
)
def test_a_description_that_lies_is_refused(value):
    assert "checkpoint" in refusal(spec_from_json, value)
    with pytest.raises((KeyError, TypeError, ValueError)):
        ours.from_json(value)


@pytest.mark.parametrize(
    "value",
    [
        changed(pre_tokenizer=split("(a+)+$")),  # takes for ever, which the library notices
        changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8A"}),
    ],
)
def test_tokenizer_failure_is_reported(value):
    tokenizer = spec_from_json(value).tokenizer
    assert "cannot be encoded" in refusal(tokenizer.encode, "a" * 40 + "b")


def test_a_description_survives_json():
    for library in (gpt2(), *(make() for make in LIBRARIES.values())):
        made = LibraryTokenizer(library, separator=3, stops=[1, 3], prefix=[2], suffix=[0], mask=1)
        spec = TextSpec(made, 8)
        again = spec_from_json(json.loads(json.dumps(spec.to_json())))
        assert again.to_json() == spec.to_json()
        assert (again.tokenizer.stops, again.tokenizer.mask) == ((3, 1), 1)
        np.testing.assert_array_equal(again.tokenizer.byte_lengths(), made.byte_lengths())
        text = "the cat 人 sat."
        assert again.tokenizer.encode(text).tolist() == made.encode(text).tolist()


JSONS = [make().to_str().encode() for make in (*LIBRARIES.values(), gpt2)]


@settings(max_examples=150, deadline=None)
@given(st.one_of(damaged(JSONS).map(lambda b: b.decode("utf-8", "replace")), JSON), TEXT)
def test_damaged_tokenizers_are_refused_or_work(text, written):
    """Whatever is taken makes tokens of its vocabulary, or says that it cannot."""
    try:
        tokenizer = spec_from_json(described(json=text, stops=[], prefix=[])).tokenizer
    except UserError:
        return
    try:
        tokens = tokenizer.encode(written)
        assert ((tokens >= 0) & (tokens < tokenizer.size)).all()
        assert len(tokenizer.byte_lengths()) == tokenizer.size
        tokenizer.decode(tokens)
    except UserError as e:
        assert len(str(e)) < 1000
