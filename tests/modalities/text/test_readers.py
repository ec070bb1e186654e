"""Own texts as they are read: labels, words with tags, and conversations."""

import json
import os

import pytest
from helpers.hostile import refusal
from helpers.own_texts import chat, load, write_conll, write_jsonl, write_lines
from helpers.paths import SHARED_DATA

from aigc_jax.modalities import readers


def examples(source, split="train", **options):
    return [example() for example in readers.read_files(source, **options).splits[split]]


def words_and_tags(source, split="train"):
    return [list(zip(e["words"], e["tags"], strict=True)) for e in examples(source, split)]


# Labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, names",
    [
        (["bad", "good", "bad"], ("bad", "good")),
        ([10, 9, 10], ("10", "9")),
        ([True, False, True], ("false", "true")),
        (["ü", "z", "ü"], ("z", "ü")),
    ],
)
def test_labels_become_numbers_of_sorted_names(tmp_path, labels, names):
    content = readers.read_files(write_jsonl(tmp_path, labels))
    assert content.class_names == names
    shown = [str(y).lower() for y in labels]
    assert [names[e()["label"]] for e in content.splits["train"]] == shown


def test_the_label_field_has_any_name(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"body": "a", "mood": "x", "label": None}] * 2)
    content = readers.read_files(f"jsonl:{path}", text_field="body", label_field="mood")
    assert content.class_names == ("x",)
    data = load(
        f"jsonl:{path}", text_field="body", label_field="mood", format="labels",
        validation_fraction=0.5, seq_len=8,
    )  # fmt: skip
    assert data.spec.class_names == ("x",)


@pytest.mark.parametrize("value", [None, "", " ", 1.5, ["a"], {"a": 1}, "\ud800"], ids=ascii)
def test_invalid_labels_are_dropped_and_named(tmp_path, value):
    path = tmp_path / "d.jsonl"
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": value}]
    path.write_text("\n".join(map(json.dumps, rows)))
    content = readers.read_files(f"jsonl:{path}")
    assert content.class_names == ()
    assert [e() for e in content.splits["train"]] == [{"text": "a"}, {"text": "b"}]
    message = refusal(load, f"jsonl:{path}", format="labels")
    assert f"line 2 of {path}" in message and "stream or documents" in message


def test_two_labels_in_one_record_are_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": 1, "label": 2}')
    assert "two values under 'label'" in refusal(
        readers.read_files, f"jsonl:{tmp_path / 'd.jsonl'}"
    )


# CoNLL ---------------------------------------------------------------------------------------

CONLL = {
    "tabs": "a\tO\nb\tB-x\n\nc\tO\n",
    "spaces": "a O\nb  B-x\n\nc O\n",
    "columns": "a DT x O\nb NN x B-x\n\nc NN y O\n",
    "a lone tab": "a\tO\nb\tB-x\n\t\nc\tO\n",
    "blank lines": "\n\n\na\tO\nb\tB-x\n \t \n\n\nc\tO\n\n\n",
    "line ends": "a\tO\r\nb\tB-x\r\n\r\nc\tO",
    "byte order mark": "\ufeffa\tO\nb\tB-x\n\nc\tO",
    "documents": "-DOCSTART- -X- O\n\na DT O\nb NN B-x\n-DOCSTART- -X- O\nc NN O\n",
    "comments": "# id = 1\n# text = a b O\na\tO\nb\tB-x\n\n# id = 2\nc\tO\n",
    "a comment with a tag at its end": "# the tag O\na DT O\nb NN B-x\n\n# of B-y or O\nc NN O\n",
}


@pytest.mark.parametrize("name", CONLL)
def test_conll(tmp_path, name):
    source = write_conll(tmp_path / "a", CONLL[name])
    assert words_and_tags(source) == [[("a", "O"), ("b", "B-x")], [("c", "O")]]


def test_words_that_begin_with_a_hash_are_no_comments(tmp_path):
    text = "#tag\tO\n#NFL\tB-group\nx\tO\n\n#\tO\n#1\tO\n"
    got = words_and_tags(write_conll(tmp_path / "a", text))
    assert got == [[("#tag", "O"), ("#NFL", "B-group"), ("x", "O")], [("#", "O"), ("#1", "O")]]


def test_odd_words_are_kept(tmp_path):
    text = "\u3000\tO\n\u2028\tB-x\na b\tI-x\n\ufeff\tO\n"
    got = words_and_tags(write_conll(tmp_path / "a", text))
    assert [w for w, _ in got[0]] == ["\u3000", "\u2028", "a b", "\ufeff"]


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ("a\tO\nb\n", 2, "no tag"),
        ("a\tO\nb\t\n", 2, "the tag ''"),
        ("a\tO\n\tB-x\n", 2, "no word"),
        ("a\tO\nb\tB\n", 2, "the tag 'B'"),
        ("a\tO\nb\tS-x\n", 2, "the tag 'S-x'"),
        ("a\tO\n\nb\tNN\n", 3, "the tag 'NN'"),
        ("a\tO\n# no comment here\n", 2, "the tag 'here'"),
        ("a\to\n", 1, "the tag 'o'"),
    ],
)
def test_a_line_without_word_or_tag_is_named(tmp_path, text, line, reason):
    message = refusal(readers.read_files, write_conll(tmp_path / "a", text))
    assert f"line {line} of {tmp_path / 'a'}" in message and reason in message


@pytest.mark.parametrize("text", ["", "\n\t\n", "# only\n", "-DOCSTART- O\n"])
def test_a_file_without_words_is_refused(tmp_path, text):
    assert "no words" in refusal(readers.read_files, write_conll(tmp_path / "a", text))


@pytest.mark.parametrize(
    "names, splits",
    [
        (["x17train.conll", "x.dev.conll"], {"train": 1, "validation": 1}),
        (["eng.train", "eng.testa", "eng.testb"], {"train": 1, "validation": 1, "test": 1}),
        (["Train.txt", "valid.txt", "x.test.annotated"], {"train": 1, "validation": 1, "test": 1}),
        (["train", "val.tsv", "README.md"], {"train": 1, "validation": 1}),
        (["train_1", "train_2", "constraint", "contest", "values"], {"train": 2}),
        (["training", ".train.swp"], {"train": 1}),
    ],
)
def test_files_of_a_folder_are_splits_by_their_names(tmp_path, names, splits):
    for name in names:
        (tmp_path / name).write_text(f"{name}\tO\n")
    content = readers.read_files(f"conll:{tmp_path}")
    assert {s: len(e) for s, e in content.splits.items()} == splits


def test_a_folder_without_training_words_is_refused(tmp_path):
    (tmp_path / "dev.conll").write_text("a\tO\n")
    message = refusal(readers.read_files, f"conll:{tmp_path}")
    assert "'train' in its name" in message and "dev.conll" in message


def test_the_development_set_is_held_out_before_the_test_set(tmp_path):
    for name in ("train", "dev", "test"):
        (tmp_path / name).write_text(f"{name}\tO\n")
    data = load(f"conll:{tmp_path}", format="tags", seq_len=16)
    (example,) = (data.validation[i] for i in range(len(data.validation)))
    assert data.spec.tokenizer.text(example["tokens"]).startswith("dev")


@pytest.mark.skipif(not os.path.isdir(f"{SHARED_DATA}/wnut17"), reason="needs the WNUT-17 files")
def test_wnut17_is_read_whole():
    content = readers.read_files(f"conll:{SHARED_DATA}/wnut17")
    assert {s: len(e) for s, e in content.splits.items()} == {"train": 3394, "validation": 1009}
    counts = {s: sum(len(x()["words"]) for x in e) for s, e in content.splits.items()}
    assert counts == {"train": 62730, "validation": 15733}
    assert len({tag for x in content.splits["train"] for tag in x()["tags"]}) == 13


# Messages ------------------------------------------------------------------------------------


def test_messages(tmp_path):
    rows = [chat("é?\n", "yes"), {**chat("b", "c"), "id": 3}]
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n\n\ufeff" + json.dumps(rows[1]), encoding="utf-8")
    got = examples(f"messages:{path}")
    assert got == [{"messages": row["messages"]} for row in rows]


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"messages": []}', "no list of messages"),
        ('{"text": "a"}', "no list of messages"),
        ("[]", "no list of messages"),
        ('{"messages": [{"role": "king", "content": "a"}]}', "'king'"),
        ('{"messages": [{"role": "user", "content": null}]}', "no text"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "not Unicode"),
        ('{"messages": [{"role": "user", "role": "user", "content": "a"}]}', "two values"),
        ('{"messages": ', "not JSON"),
    ],
)
def test_a_line_that_is_no_conversation_is_refused(tmp_path, line, reason):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(chat("a", "b")) + "\n" + line)
    message = refusal(readers.read_files, f"messages:{path}")
    assert f"line 2 of {path}" in message and reason in message


def test_no_conversation_at_all_is_refused(tmp_path):
    (tmp_path / "c.jsonl").write_text("\n")
    assert "no conversations" in refusal(readers.read_files, f"messages:{tmp_path / 'c.jsonl'}")
