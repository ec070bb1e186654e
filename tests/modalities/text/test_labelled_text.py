"""Texts with labels and words with tags: what stands where, and that nothing is lost."""

import itertools
import json

import numpy as np
import pytest
from helpers.hostile import refusal
from helpers.small_tokenizers import wordpiece
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError
from aigc_jax.modalities import sources
from aigc_jax.modalities.text.hf_tokenizer import LibraryTokenizer
from aigc_jax.modalities.text.labelled_text import Labelled, Tagged, runs, word_encoder
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizers import ByteTokenizer, CharTokenizer

BYTE = ByteTokenizer()
SEP = BYTE.separator


def bert():
    """A tokenizer that puts [CLS] before a text and [SEP] after it."""
    return LibraryTokenizer(wordpiece(), separator=3, prefix=(2,), suffix=(3,), mask=4)


def rows_of(source):
    return [source[i] for i in range(len(source))]


# Labels --------------------------------------------------------------------------------------


def test_a_labelled_text_by_hand():
    source = Labelled(["ab", "", "abcdef"], [1, 0, 1], BYTE, 6)
    first, second, third = rows_of(source)
    assert first["tokens"].tolist() == [SEP, 97, 98, SEP, 0, 0, 0]
    assert first["segments"].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert second["tokens"].tolist() == [SEP, SEP, 0, 0, 0, 0, 0]
    assert third["tokens"].tolist() == [SEP, 97, 98, 99, 100, SEP, 0]
    assert [row["label"] for row in (first, second, third)] == [1, 0, 1]
    assert first["label"].dtype == np.int32 and first["weight"] == np.float32(1)
    assert source.truncated == 1


def test_special_tokens_around_a_text():
    (row,) = rows_of(Labelled(["a cat"], [0], bert(), 8))
    tokenizer = bert()
    assert row["tokens"][:4].tolist() == [2, *tokenizer.encode("a cat").tolist(), 3]
    assert row["segments"].sum() == 4


@pytest.mark.parametrize("seq_len", [1, 2])
def test_no_room_for_text_is_refused(seq_len):
    assert f"data.seq_len={seq_len}" in refusal(Labelled, ["a"], [0], BYTE, seq_len)
    assert f"data.seq_len={seq_len}" in refusal(Tagged, [["a"]], [[0]], BYTE, seq_len)


def write_labels(tmp_path, labels):
    path = tmp_path / "d.jsonl"
    rows = [{"text": f"text of {y} " + "x" * i, "label": y} for i, y in enumerate(labels)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{path}"


def load(source, **options):
    return sources.load_source(Data(source=source, **options))


def test_labels_go_with_their_texts(tmp_path):
    data = load(write_labels(tmp_path, ["b", "c", "a"] * 10), format="labels", seq_len=64)
    assert data.spec.class_names == ("a", "b", "c") and data.spec.num_classes == 3
    for row in [*rows_of(data.train), *rows_of(data.validation)]:
        text = BYTE.text(row["tokens"][row["segments"] > 0])
        assert text[8] == data.spec.class_names[row["label"]]


def test_cut_texts_are_counted_once(tmp_path, capfd):
    load(write_labels(tmp_path, ["a", "b"] * 10), format="labels", seq_len=20)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "11 of 20 texts are longer than data.seq_len=20" in said


def test_a_label_that_is_never_trained_on_is_named(tmp_path):
    source = write_labels(tmp_path, ["a"] * 9 + ["odd"])
    assert "label 'odd'" in refusal(load, source, format="labels", split="tail", seq_len=32)
    data = load(
        write_labels(tmp_path, ["odd"] + ["a"] * 9), format="labels", split="tail", seq_len=32
    )
    assert data.spec.class_names == ("a", "odd")


def test_a_limit_takes_no_class_away(tmp_path):
    source = write_labels(tmp_path, ["a"] * 5 + ["b"] * 5)
    data = load(source, format="labels", split="tail", seq_len=32, max_train_examples=2)
    assert len(data.train) == 2 and data.spec.class_names == ("a", "b")


# Tags ----------------------------------------------------------------------------------------


def test_tagged_words_by_hand():
    (row,) = rows_of(Tagged([["ab", "c"]], [[2, 0]], BYTE, 8))
    assert row["tokens"].tolist() == [SEP, 97, 98, 32, 99, SEP, 0, 0, 0]
    assert row["segments"].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert row["tags"].tolist() == [-1, 2, -1, 0, -1, -1, -1, -1]
    assert row["tags"].dtype == np.int32 and row["weight"] == np.float32(1)


def test_words_between_special_tokens():
    (row,) = rows_of(Tagged([["sat", "cats", "a"]], [[1, 2, 3]], bert(), 9))
    assert row["tokens"].tolist() == [2, 9, 8, 10, 7, 3, 0, 0, 0, 0]
    assert row["tags"].tolist() == [-1, 1, 2, -1, 3, -1, -1, -1, -1]


def test_a_word_of_which_nothing_is_left_keeps_its_tag():
    tokenizer = bert()
    assert len(tokenizer.encode("\u200b")) == 0
    (row,) = rows_of(Tagged([["a", "\u200b", "cat"]], [[0, 4, 0]], tokenizer, 8))
    assert row["tokens"][:5].tolist() == [2, 7, tokenizer.separator, 8, 3]
    assert row["tags"][:5].tolist() == [-1, 0, 4, 0, -1]


def test_words_have_the_tokens_that_they_have_in_a_sentence():
    from helpers.small_tokenizers import byte_fallback, trained

    llama = LibraryTokenizer(byte_fallback(), separator=2, prefix=(1,))
    for tokenizer in (BYTE, CharTokenizer("the cat人"), trained(), llama, bert()):
        encode = word_encoder(tokenizer)
        words = ["the", "cat", "cat", "人"] if tokenizer is not llama else ["cat", "cat", "a"]
        tokens = [t for i, w in enumerate(words) for t in encode(w, i > 0).tolist()]
        assert tokens == tokenizer.encode(" ".join(words)).tolist()


SENTENCE = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0, 0, 1, 2])), max_size=30)


@given(SENTENCE, st.integers(9, 20))
@settings(deadline=None, max_examples=300)
def test_runs_hold_every_word_once_and_fit(words, room):
    sizes, tags = [n for n, _ in words], [t for _, t in words]
    found = runs(sizes, tags, room, frozenset({2}), 0)
    assert [i for run in found for i in run] == list(range(len(words)))
    assert all(len(run) and sum(sizes[i] for i in run) <= room for run in found)
    for before, run in itertools.pairwise(found):
        if tags[run[0]] == 2:  # only where nothing else could be done
            assert all(tags[i] == 2 for i in range(before[0] + 1, run[0] + 1))


@pytest.mark.parametrize(
    "tags, expected",
    [
        ([0] * 10, [5, 5]),  # as late as it fits
        ([0, 0, 0, 0, 1, 2, 2, 0, 0, 0], [4, 5, 1]),  # before a name
        ([0, 0, 0, 0, 0, 1, 2, 2, 0, 0], [5, 5]),
        ([0, 0, 0, 0, 1, 1, 0, 0, 0, 0], [4, 5, 1]),  # not between names if there is a choice
        ([1, 2, 2, 2, 2, 2, 2, 2, 2, 2], [5, 5]),  # a name that is too long
        ([0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [5, 5]),  # too early
        ([0, 0, 0, 0, 1, 2, 0, 0, 0, 0], [4, 5, 1]),
    ],
)
def test_sentences_are_not_cut_within_an_entity(tags, expected):
    assert [len(run) for run in runs([1] * 10, tags, 5, frozenset({2}), 0)] == expected


@given(st.lists(st.lists(st.text("ab 人\u200b", max_size=30), min_size=1, max_size=12), max_size=5))
@settings(deadline=None, max_examples=100)
def test_no_tag_is_lost(sentences):
    tags = [[(7 * i + j) % 5 for j in range(len(words))] for i, words in enumerate(sentences)]
    for tokenizer in (BYTE, bert()):
        source = Tagged(sentences, tags, tokenizer, 16, frozenset({2}))
        got = []
        for row in rows_of(source):
            assert row["segments"].sum() <= 16
            assert (row["segments"][:-1][row["tags"] >= 0] == 1).all()
            got += row["tags"][row["tags"] >= 0].tolist()
        assert got == [t for sentence in tags for t in sentence]


def write_conll(path, sentences):
    lines = ["\n".join(f"{w}\t{t}" for w, t in s) for s in sentences]
    path.write_text("\n\n".join(lines))


def test_tags_of_both_parts_outside_first(tmp_path):
    write_conll(tmp_path / "train", [[("a", "B-y"), ("b", "I-y")]])
    write_conll(tmp_path / "dev", [[("c", "B-x"), ("d", "O")]])
    data = load(f"conll:{tmp_path}", format="tags", seq_len=16)
    assert data.spec.class_names == ("O", "B-x", "B-y", "I-y")
    assert data.train[0]["tags"].tolist()[1:4] == [2, 3, -1]
    assert data.validation[0]["tags"].tolist()[1:4] == [1, 0, -1]
    write_conll(tmp_path / "dev", [[("c", "B-y")]])
    names = load(f"conll:{tmp_path}", format="tags", seq_len=16).spec.class_names
    assert names == ("O", "B-y", "I-y")


def test_split_sentences_are_counted_once(tmp_path, capfd):
    write_conll(tmp_path / "a", [[("word", "O")] * n for n in (1, 9, 1, 9, 1, 9)])
    data = load(f"conll:{tmp_path / 'a'}", format="tags", seq_len=32, validation_fraction=0.34)
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "3 of 6 sentences are longer than data.seq_len=32" in said
    tags = [row["tags"] for part in (data.train, data.validation) for row in rows_of(part)]
    assert sum((t >= 0).sum() for t in tags) == 30


def test_a_name_of_a_sentence_that_is_split_stays_whole(tmp_path):
    name = [("c", "B-x"), *[("d", "I-x")] * 4]
    write_conll(tmp_path / "a", [[("a", "O"), ("b", "B-x"), *name]] * 2)
    data = load(f"conll:{tmp_path / 'a'}", format="tags", seq_len=13, validation_fraction=0.5)
    tags = [row["tags"][row["tags"] >= 0].tolist() for row in rows_of(data.train)]
    assert tags == [[0, 1], [1, 2, 2, 2, 2]]


def test_a_vocabulary_of_characters_has_the_space_between_words(tmp_path):
    write_conll(tmp_path / "a", [[("ab", "O"), ("c", "O")]] * 9)
    data = load(f"conll:{tmp_path / 'a'}", format="tags", seq_len=16, tokenizer="char")
    assert data.spec.tokenizer.characters == [" ", "a", "b", "c"]


# One text at a time --------------------------------------------------------------------------


def test_a_text_to_classify_is_framed_as_in_training():
    spec = TextSpec(BYTE, 8, "labels", ("x", "y"))
    trained = Labelled(["text to classify"], [0], BYTE, 8)[0]
    given_one = spec.example("text to classify")
    assert given_one.keys() == spec.example_batch(1).keys()
    for key, value in trained.items():
        np.testing.assert_array_equal(given_one[key], value)


@pytest.mark.parametrize("text", ["two words", "", "  spaced   out ", "word " * 40])
def test_a_text_to_tag_has_a_place_for_each_word(text):
    spec = TextSpec(BYTE, 64, "tags", ("O", "B-x"))
    example = spec.example(text)
    assert example.keys() == spec.example_batch(1).keys()
    assert (example["tags"] == 0).sum() == min(max(len(text.split()), 1), 12)
    assert set(example["tags"].tolist()) <= {0, -1}


def test_other_data_are_judged_whole_by_the_models_own_classes(tmp_path):
    """A model keeps its numbers of classes, whatever part of them the other data show."""
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in
                            [("one", "b"), ("two", "a"), ("three", "b")]))  # fmt: skip
    config = Data(source=f"jsonl:{path}", format="labels", seq_len=16)
    knows = TextSpec(ByteTokenizer(), 16, "labels", ("c", "b", "a"))
    found = sources.load_source(config, knows.tokenizer, knows)
    assert found.spec == knows
    assert [int(found.validation[i]["label"]) for i in range(len(found.validation))] == [1, 2, 1]
    with pytest.raises(UserError, match="the class 'a'"):
        sources.load_source(
            config, knows.tokenizer, TextSpec(ByteTokenizer(), 16, "labels", ("b",))
        )

    path = tmp_path / "other.conll"
    path.write_text("Ana\tB-person\nran\tO\n\nit\tO\n\n")
    config = Data(source=f"conll:{path}", format="tags", seq_len=16)
    knows = TextSpec(ByteTokenizer(), 16, "tags", ("O", "B-group", "B-person"))
    found = sources.load_source(config, knows.tokenizer, knows)
    assert found.spec == knows and len(found.validation) == 2
    assert [t for t in found.validation[0]["tags"].tolist() if t >= 0] == [2, 0]
    with pytest.raises(UserError, match="the tag 'B-person'"):
        sources.load_source(config, knows.tokenizer, TextSpec(ByteTokenizer(), 16, "tags", ("O",)))
