"""Own texts read without preparing: how they are held out, and in which forms."""

import json

import numpy as np
import pytest
from helpers.hostile import refusal
from helpers.own_texts import SENTENCES, load, write_chats, write_conll, write_jsonl, write_lines

from aigc_jax.core.config import Data
from aigc_jax.core.modality import LABEL, TOKENS, spec_from_json, task_of
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.modalities import readers, sources
from aigc_jax.modalities.prepare import prepare
from aigc_jax.modalities.text.document_split import last_documents
from aigc_jax.modalities.text.token_store import text_parts
from aigc_jax.modalities.text.tokenizers import CharTokenizer

# Read directly -------------------------------------------------------------------------------


def test_texts_are_read_directly(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n" * 40)
    data = load(f"text:{tmp_path}/*.txt", seq_len=16, tokenizer="char")
    assert sorted("".join(data.texts["train"] + data.texts["validation"])) == sorted(
        "text a\n" * 40 + "text b\n" * 40
    )
    assert data.spec.tokenizer.characters == sorted(set("text a\nb"))
    assert data.train[0].keys() == {"tokens", "weight"}


def test_images_are_read_directly_too(tmp_path):
    pixels = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
    np.savez(tmp_path / "d.npz", images=pixels, labels=[0, 1] * 3)
    data = load(f"npz:{tmp_path / 'd.npz'}", validation_fraction=0.5)
    assert data.spec.shape == (4, 4, 1) and data.spec.class_names == ("0", "1")
    got = [s[i]["image"].ravel().tolist() for s in (data.train, data.validation) for i in range(3)]
    assert sorted(got) == pixels.reshape(6, -1).tolist()


def test_the_split_of_the_files_is_kept(tmp_path):
    pixels = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
    np.savez(tmp_path / "d.npz", x_train=pixels[:4], x_test=pixels[4:])
    data = load(f"npz:{tmp_path / 'd.npz'}", max_train_examples=3)
    assert [data.train[i]["image"][0, 0, 0] for i in range(len(data.train))] == [0, 16, 32]
    assert [data.validation[i]["image"][0, 0, 0] for i in range(2)] == [64, 80]


@pytest.mark.parametrize("source", ["text:", "conll:", "messages:", "jsonl:", "tabs:x"])
def test_a_source_without_path_or_of_no_kind_is_refused(source):
    message = refusal(load, source)
    assert f"data.source '{source}'" in message


def test_a_missing_file_is_named(tmp_path):
    assert str(tmp_path / "gone") in refusal(load, f"jsonl:{tmp_path / 'gone'}")
    (tmp_path / "d.jsonl").write_text('{"body": "a"}')
    assert "data.text_field" in refusal(load, f"jsonl:{tmp_path / 'd.jsonl'}")


# Forms ---------------------------------------------------------------------------------------


def write_any(tmp_path, kind):
    if kind == "text":
        (tmp_path / "a.txt").write_text("some text\n" * 90)
        return f"text:{tmp_path / 'a.txt'}"
    if kind == "jsonl":
        return write_jsonl(tmp_path, ["x", "y"] * 20)
    if kind == "messages":
        return write_chats(tmp_path)
    if kind == "conll":
        return write_conll(tmp_path / "a.conll", SENTENCES * 5)
    return "digits"


FORMS = {
    "text": {"stream", "documents"},
    "jsonl": {"stream", "documents", "labels"},
    "messages": {"chat"},
    "conll": {"tags"},
    "digits": {"stream"},
}
ALL_FORMS = ("stream", "documents", "chat", "labels", "tags")


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("kind", FORMS)
def test_sources_declare_their_formats(tmp_path, kind, form):
    source = write_any(tmp_path, kind)
    if form in FORMS[kind]:
        data = load(source, format=form, seq_len=32)
        batch = data.spec.example_batch(3)
        for part in (data.train, data.validation):
            example = part[0]
            assert example.keys() == batch.keys()
            for key, value in example.items():
                assert batch[key].shape == (3, *np.shape(value)), key
                assert batch[key].dtype == value.dtype, key
    else:
        message = refusal(load, source, format=form, seq_len=32)
        assert f"data.format={form}" in message
        there = " or ".join(f for f in ALL_FORMS if f in FORMS[kind])
        assert kind == "digits" or f"set data.format={there}" in message


@pytest.mark.parametrize(
    "form, task",
    [("stream", TOKENS), ("documents", TOKENS), ("labels", LABEL)],
)
def test_the_spec_tells_the_format_and_survives_json(tmp_path, form, task):
    data = load(write_any(tmp_path, "jsonl"), format=form, seq_len=32, tokenizer="char")
    assert task_of(data.spec) == task and data.spec.format == form
    again = spec_from_json(json.loads(json.dumps(data.spec.to_json())))
    assert again.to_json() == data.spec.to_json()
    assert (again.format, again.class_names) == (form, data.spec.class_names)
    assert data.spec.class_names == (("x", "y") if form == "labels" else ())


def test_a_held_out_window_predicts_as_many_tokens_as_asked_for(tmp_path):
    source = write_any(tmp_path, "text")
    for stride, expected in ((0, 16), (1, 1), (7, 7), (32, 32)):
        assert load(source, seq_len=32, eval_stride=stride).validation.stride == expected
    assert "data.eval_stride=33" in refusal(load, source, seq_len=32, eval_stride=33)
    assert load(source, seq_len=1).validation.stride == 1


# Held out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [100, 101, 999, 1115])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.25])
def test_the_tail_of_one_text_is_cut_by_character(length, fraction):
    text = "".join(chr(97 + i % 26) for i in range(length))
    train, held_out = last_documents([text], fraction)
    assert train == [text[: int(length * (1 - fraction))]]
    assert "".join(train + held_out) == text


def test_the_tail_of_one_file_is_held_out_whole(tmp_path):
    text = "".join(f"line {i}\n" for i in range(500))
    (tmp_path / "a.txt").write_text(text)
    data = load(f"text:{tmp_path / 'a.txt'}", split="tail", validation_fraction=0.1, seq_len=16)
    end = int(len(text) * 0.9)
    assert data.texts == {"train": [text[:end]], "validation": [text[end:]]}
    # A separator stands before the text and after it, and nothing is cut.
    assert data.train.stream.tolist() == [256, *text[:end].encode(), 256]


def test_the_last_documents_are_held_out(tmp_path):
    source = write_jsonl(tmp_path, ["x", "y"] * 5)
    data = load(source, split="tail", validation_fraction=0.3, seq_len=8)
    assert data.texts["train"] == [f"text {i} of {'xy'[i % 2]}" for i in range(7)]
    assert data.texts["validation"] == [f"text {i} of {'xy'[i % 2]}" for i in range(7, 10)]


def texts_of(source, tokenizer):
    rows = [source[i] for i in range(len(source))]
    return [tokenizer.text(row["tokens"][row["segments"] > 0]) for row in rows]


@pytest.mark.parametrize("split", ["random", "tail"])
def test_examples_are_held_out_once_each(tmp_path, split):
    source = write_jsonl(tmp_path, ["x", "y"] * 10)
    data = load(source, format="labels", split=split, validation_fraction=0.25, seq_len=32)
    train, held_out = (texts_of(s, data.spec.tokenizer) for s in (data.train, data.validation))
    everything = [f"text {i} of {'xy'[i % 2]}" for i in range(20)]
    assert sorted(train + held_out) == sorted(everything) and len(held_out) == 5
    assert (train == everything[:15]) == (split == "tail")
    again = load(source, format="labels", split=split, validation_fraction=0.25, seq_len=32)
    assert texts_of(again.validation, data.spec.tokenizer) == held_out
    few = load(
        source,
        format="labels",
        split=split,
        validation_fraction=0.25,
        seq_len=32,
        max_train_examples=4,
    )
    assert texts_of(few.train, data.spec.tokenizer) == train[:4]
    assert texts_of(few.validation, data.spec.tokenizer) == held_out


def test_the_tail_of_images_is_held_out(tmp_path):
    pixels = np.arange(160, dtype=np.uint8).reshape(10, 4, 4)
    np.savez(tmp_path / "d.npz", images=pixels)
    data = load(f"npz:{tmp_path / 'd.npz'}", split="tail", validation_fraction=0.2)
    assert [data.validation[i]["image"][0, 0, 0] for i in range(2)] == [128, 144]
    assert len(data.train) == 8


@pytest.mark.parametrize("form", ["documents", "labels", "chat", "tags"])
def test_a_fraction_that_holds_nothing_out_is_refused(tmp_path, form):
    kind = next(kind for kind, forms in FORMS.items() if form in forms and kind != "text")
    for split in ("random", "tail"):
        message = refusal(
            load, write_any(tmp_path, kind), format=form, split=split, validation_fraction=0.0
        )
        assert "data.validation_fraction=0.0" in message


@pytest.mark.parametrize("form", ["stream", "documents"])
@pytest.mark.parametrize("split", ["random", "tail"])
def test_one_text_of_which_nothing_is_held_out_is_refused(tmp_path, form, split):
    source = write_any(tmp_path, "text")
    message = refusal(load, source, format=form, split=split, validation_fraction=0.0, seq_len=16)
    assert ("too short" if form == "stream" else "data.validation_fraction=0.0") in message


# Tokenizers ----------------------------------------------------------------------------------


def test_bpe_is_learned_from_the_training_documents_only(tmp_path):
    texts = ["aaaa bbbb " * 40] * 9 + ["zqzqzqzq " * 400]
    path = write_lines(tmp_path / "d.jsonl", [{"text": t} for t in texts])
    options = dict(split="tail", validation_fraction=0.1, seq_len=8, tokenizer="bpe")
    tokenizer = load(f"jsonl:{path}", vocab_size=300, **options).spec.tokenizer
    assert len(tokenizer.encode("aaaa")) == 1 and len(tokenizer.encode("zqzq")) == 4
    assert load(f"jsonl:{path}", vocab_size=262, **options).spec.tokenizer.size == 262


def test_the_characters_are_those_of_both_parts(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"text": t} for t in ["ab" * 9] * 9 + ["xy" * 9]])
    data = load(f"jsonl:{path}", split="tail", validation_fraction=0.1, seq_len=8, tokenizer="char")
    assert data.spec.tokenizer.characters == ["a", "b", "x", "y"]


def test_a_ready_tokenizer_wins(tmp_path):
    ready = CharTokenizer("some text\n" + "xyz")
    config = Data(source=write_any(tmp_path, "text"), tokenizer="workdir:gone", seq_len=8)
    assert sources.load_source(config, ready).spec.tokenizer is ready
    assert "workdir:gone" in refusal(sources.load_source, config)


def test_a_long_document_is_made_into_tokens_in_parts(monkeypatch):
    monkeypatch.setattr("aigc_jax.modalities.text.token_store.PART", 50)
    text = "one line\nand more  \n\n\n  blank\nend " * 20
    pieces = list(text_parts(text))
    assert "".join(pieces) == text and len(pieces) > 5
    # Only where a line that is not blank ends and the next is not indented.
    assert all(p.endswith("\n") and not p[-2].isspace() for p in pieces[:-1])
    assert not any(p[0].isspace() for p in pieces)
    assert list(text_parts("a" * 500)) == ["a" * 500] and list(text_parts("")) == [""]


def test_parts_have_the_tokens_of_the_whole(monkeypatch):
    from helpers.small_tokenizers import DOCUMENTS, trained

    text = "".join(DOCUMENTS) * 5
    monkeypatch.setattr("aigc_jax.modalities.text.token_store.PART", 40)
    got = [t for part in text_parts(text) for t in trained().encode(part).tolist()]
    assert len(list(text_parts(text))) > 5 and got == trained().encode(text).tolist()


# Prepared ------------------------------------------------------------------------------------


def test_labels_round_trip(tmp_path):
    source = write_jsonl(tmp_path, ["good", "two words", "犬"] * 4)
    prepare(source, "own", str(tmp_path / "data"))
    options = dict(data_dir=str(tmp_path / "data"), seq_len=48)
    data = load("tfds:own", format="labels", validation_fraction=0.5, **options)
    assert data.spec.class_names == ("good", "two words", "犬")
    for part in (data.train, data.validation):
        for i, text in enumerate(texts_of(part, data.spec.tokenizer)):
            assert text.endswith(data.spec.class_names[part[i]["label"]])
    assert len(load("tfds:own", format="documents", **options).train) >= 1


@pytest.mark.parametrize("label", [" x", "x\n", "a\u2028b"])
def test_a_label_that_tfds_would_change_is_refused(tmp_path, label):
    source = write_jsonl(tmp_path, [label, "y"] * 8)
    assert "invalid name" in refusal(prepare, source, "own", str(tmp_path / "data"))
    assert load(source, format="labels", seq_len=32).spec.class_names == (label, "y")


def test_conversations_round_trip(tmp_path):
    prepare(write_chats(tmp_path), "own", str(tmp_path / "data"))
    data = load("tfds:own", data_dir=str(tmp_path / "data"), format="chat", seq_len=128)
    assert len(data.dialogues) == 2
    assert all(d[1]["content"] == f"{d[0]['content'][8:-1]}." for d in data.dialogues)
    message = refusal(load, "tfds:own", data_dir=str(tmp_path / "data"))
    assert "set data.format=chat" in message


def test_words_and_tags_round_trip(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "in" / name).write_text(SENTENCES)
    prepare(f"conll:{tmp_path / 'in'}", "own", str(tmp_path / "data"))
    prepared = load("tfds:own", data_dir=str(tmp_path / "data"), format="tags", seq_len=48)
    direct = load(f"conll:{tmp_path / 'in'}", format="tags", seq_len=48)
    assert prepared.spec.to_json() == direct.spec.to_json()

    def rows(source):  # TFDS keeps no order
        return sorted((source[i]["tokens"].tolist(), source[i]["tags"].tolist()) for i in range(2))

    assert rows(prepared.train) == rows(direct.train)
    assert rows(prepared.validation) == rows(direct.validation)


@pytest.mark.parametrize(
    "record, reason",
    [
        (dict(messages="[]"), "no list of messages"),
        (dict(messages="{"), "not JSON"),
        (dict(messages='[{"role": "user"}]'), "content"),
        (dict(words='["a"]', tags='["O", "O"]'), "as many tags"),
        (dict(words='["a", 1]', tags='["O", "O"]'), "as many tags"),
        (dict(words='["\\ud800"]', tags='["O"]'), "as many tags"),
        (dict(words='["a"]', tags='["X"]'), "'X'"),
        (dict(words="[]", tags="[]"), "as many tags"),
    ],
)
def test_a_prepared_record_that_lies_is_refused(tmp_path, monkeypatch, record, reason):
    """As if written by someone else."""
    holds = next(iter(record))
    content = RawDataset({"train": [lambda: record] * 3}, kind=holds)
    monkeypatch.setattr(readers, "read_files", lambda *args, **kwargs: content)
    prepare("any", "own", str(tmp_path))
    form = "chat" if holds == "messages" else "tags"
    message = refusal(load, "tfds:own", data_dir=str(tmp_path), format=form)
    assert "the data set 'own'" in message and reason in message
