"""Documents in rows: every target once, none across documents, and little room wasted."""

import collections
import itertools
import json
import time

import numpy as np
import pytest
from helpers.hostile import refusal
from helpers.small_tokenizers import kind
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.core.config import Data
from aigc_jax.data.fixed_batches import eval_batches
from aigc_jax.data.loader import DataLoader
from aigc_jax.modalities import sources
from aigc_jax.modalities.text.packing import best_fit, pack, with_special_tokens
from aigc_jax.modalities.text.tokenizers import ByteTokenizer


def rows_of(packed):
    return [packed[i] for i in range(len(packed))]


def numbered(lengths):
    """Documents of different tokens, from 1, so that a token tells its place."""
    ends = np.cumsum([0, *lengths])
    return [np.arange(a + 1, b + 1) for a, b in itertools.pairwise(ends)]


def targets(rows):
    """(input, target) of all targets with weight."""
    pairs = []
    for row in rows:
        real = row["weight"] > 0
        pairs += zip(row["tokens"][:-1][real], row["tokens"][1:][real], strict=True)
    return [(int(a), int(b)) for a, b in pairs]


LENGTHS = st.lists(st.integers(0, 40), max_size=30)
SEQ_LEN = st.integers(1, 20)


@given(LENGTHS, SEQ_LEN)
@settings(deadline=None, max_examples=200)
def test_every_token_is_predicted_once_from_the_one_before(lengths, seq_len):
    documents = numbered(lengths)
    rows = rows_of(pack([(d, None) for d in documents], seq_len))
    expected = [(t, t + 1) for d in documents for t in d[:-1].tolist()]
    assert sorted(targets(rows)) == expected


@given(LENGTHS, SEQ_LEN)
@settings(deadline=None, max_examples=200)
def test_segments_are_runs_of_one_document_then_padding(lengths, seq_len):
    documents = numbered(lengths)
    document_of = {t: i for i, d in enumerate(documents) for t in d.tolist()}
    for row in rows_of(pack([(d, None) for d in documents], seq_len)):
        tokens, segments, weight = row["tokens"], row["segments"], row["weight"]
        assert (tokens.shape, segments.shape, weight.shape) == (
            (seq_len + 1,), (seq_len + 1,), (seq_len,)
        )  # fmt: skip
        assert (tokens.dtype, segments.dtype, weight.dtype) == (np.int32, np.int32, np.float32)
        real = segments > 0
        count = int(real.sum())
        assert real[:count].all() and count > 1
        assert (tokens[~real] == 0).all() and (weight[~real[1:]] == 0).all()
        steps = np.diff(segments[:count])
        assert segments[0] == 1 and set(steps.tolist()) <= {0, 1}
        for segment in range(1, segments.max() + 1):
            run = tokens[segments == segment]
            assert run.tolist() == list(range(run[0], run[0] + len(run)))
            assert len({document_of[t] for t in run.tolist()}) == 1
        # A target counts unless it begins another segment.
        same = (segments[1:] == segments[:-1]) & real[1:]
        np.testing.assert_array_equal(weight, same.astype(np.float32))


@given(st.lists(st.lists(st.integers(0, 3), max_size=25), max_size=12), SEQ_LEN)
@settings(deadline=None, max_examples=200)
def test_weights_stay_with_their_tokens(weights, seq_len):
    documents = numbered([len(w) for w in weights])
    weighed = [(d, np.array(w, np.float32)) for d, w in zip(documents, weights, strict=True)]
    rows = rows_of(pack(weighed, seq_len))
    got = {}
    for row in rows:
        assert row["weight"].any()
        for token, weight in zip(row["tokens"][1:], row["weight"], strict=True):
            if weight:
                assert int(token) not in got
                got[int(token)] = float(weight)
    expected = {
        int(t): float(w)
        for d, ws in zip(documents, weights, strict=True)
        for t, w in zip(d[1:], ws[1:], strict=True)
        if w
    }
    assert got == expected


def test_documents_with_and_without_weights_can_be_mixed():
    documents = numbered([4, 4, 4])
    weights = [None, np.array([0, 0, 1, 0], np.float32), None]
    rows = rows_of(pack(zip(documents, weights, strict=True), 6))
    assert sorted(b for _, b in targets(rows)) == [2, 3, 4, 7, 10, 11, 12]


def test_a_long_document_becomes_pieces_that_share_one_token():
    (document,) = numbered([12])
    rows = rows_of(pack([(document, None)], 5))
    pieces = [row["tokens"][row["segments"] > 0].tolist() for row in rows]
    assert sorted(pieces) == [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 11], [11, 12]]


def test_documents_with_nothing_to_predict_are_counted():
    one = np.ones(3, np.float32)
    documents = [
        (d, w) for d, w in zip(numbered([3, 3, 1, 0]), [one, 0 * one, None, None], strict=True)
    ]
    packed = pack(documents, 8)
    assert packed.dropped == 3 and len(packed) == 1
    assert packed[0]["segments"].max() == 1
    assert len(pack([], 8)) == 0


# Rows ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(2, 17), max_size=60))
@settings(deadline=None, max_examples=200)
def test_no_row_overflows_and_none_could_be_spared_by_merging(lengths):
    rows = best_fit(np.array(lengths, np.int64), 17)
    used = collections.Counter()
    for row, length in zip(rows.tolist(), lengths, strict=True):
        used[row] += length
    assert list(used) == list(range(len(used)))  # in the order of their first documents
    assert max(used.values(), default=0) <= 17
    fill = sorted(used.values())
    assert len(fill) < 2 or fill[0] + fill[1] > 17


def test_best_fit_fills_rows_that_go_together():
    assert best_fit(np.array([6, 4, 7, 3, 5, 5]), 10).max() == 2
    # In the order of the documents, the first of each row.
    assert best_fit(np.array([3, 9, 7, 2]), 10).tolist() == [0, 1, 0, 2]


def test_packing_is_the_same_every_time():
    lengths = np.random.default_rng(0).integers(2, 100, 500)
    np.testing.assert_array_equal(best_fit(lengths, 128), best_fit(lengths.copy(), 128))


def test_a_hundred_thousand_documents_are_packed_in_seconds():
    lengths = np.random.default_rng(0).geometric(1 / 200, 100_000).clip(2, 1025)
    start = time.perf_counter()
    rows = best_fit(lengths, 1025)
    assert time.perf_counter() - start < 10
    assert lengths.sum() / (1025 * (rows.max() + 1)) > 0.99


# Documents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["byte", "char", "trained"])
def test_documents_are_separated(name):
    tokenizer = kind(name)
    tokens, weight = with_special_tokens("The cat", tokenizer)
    end = tokenizer.separator
    assert tokens.tolist() == [end, *tokenizer.encode("The cat").tolist(), end]
    assert weight is None


def test_document_has_a_first_token_without_bos():
    tokenizer = kind("wordpiece")
    assert tokenizer.prefix == ()
    tokens, _ = with_special_tokens("cat", tokenizer)
    assert tokens[0] == tokens[-1] == tokenizer.separator and len(tokens) == 3


def write_jsonl(tmp_path, records):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def read_back(source):
    """The documents of a source, each without what stands around it."""
    found = []
    for row in rows_of(source):
        for segment in range(1, row["segments"].max() + 1):
            found.append(row["tokens"][row["segments"] == segment].tolist())
    return found


def test_documents_are_packed_whole_in_both_parts(tmp_path):
    texts = [f"document {i} " + "x" * (7 * i % 50) for i in range(60)]
    path = write_jsonl(tmp_path, [{"text": t} for t in texts])
    data = sources.load_source(Data(source=f"jsonl:{path}", format="documents", seq_len=80))
    found = read_back(data.train) + read_back(data.validation)
    assert sorted(found) == sorted([256, *t.encode(), 256] for t in texts)
    assert sorted(data.texts["train"] + data.texts["validation"]) == sorted(texts)
    assert data.spec.format == "documents" and data.spec.modality == "text"
    assert np.mean([row["segments"] > 0 for row in rows_of(data.train)]) > 0.8


def test_every_row_comes_once_per_epoch_and_once_in_evaluation(tmp_path):
    texts = [f"document {i} " + "x" * (7 * i % 50) for i in range(60)]
    path = write_jsonl(tmp_path, [{"text": t} for t in texts])
    data = sources.load_source(Data(source=f"jsonl:{path}", format="documents", seq_len=80))
    count = len(data.train)
    batches = DataLoader(data.train, count, seed=0)
    epochs = [batches.next()["tokens"].tolist() for _ in range(2)]
    assert (
        sorted(epochs[0])
        == sorted(epochs[1])
        == sorted(r["tokens"].tolist() for r in rows_of(data.train))
    )
    assert epochs[0] != epochs[1]
    held_out = list(eval_batches(data.validation, 4))
    total = sum(batch["weight"].sum() for batch in held_out)
    assert total == sum(len(t.encode()) + 1 for t in data.texts["validation"])


# Conversations -------------------------------------------------------------------------------


def chat(question, answer, role="assistant"):
    messages = [{"role": "user", "content": question}, {"role": role, "content": answer}]
    return {"messages": messages}


def load_chats(tmp_path, records, **options):
    path = write_jsonl(tmp_path, records)
    return sources.load_source(Data(source=f"messages:{path}", format="chat", **options))


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_only_what_the_assistant_says_is_a_target(tmp_path, tokenizer):
    records = [chat(f"what is {i}?", f"it is {i}.") for i in range(30)]
    data = load_chats(tmp_path, records, seq_len=256, tokenizer=tokenizer, vocab_size=300)
    coder = data.spec.tokenizer
    start, end = (coder.special(f"<|im_{name}|>") for name in ("start", "end"))
    said = collections.Counter()
    for row in [*rows_of(data.train), *rows_of(data.validation)]:
        for segment in range(1, row["segments"].max() + 1):
            whole = row["tokens"][row["segments"] == segment].tolist()
            assert tuple(whole[: len(start)]) == start
            learned = (row["segments"][1:] == segment) & (row["weight"] > 0)
            tokens = row["tokens"][1:][learned].tolist()
            assert tuple(tokens[-len(end) :]) == end
            said[coder.text(tokens[: -len(end)])] += 1
    assert said == {f"it is {i}.": 1 for i in range(30)}
    assert data.spec.format == "chat" and data.texts == {}
    assert len(data.dialogues) == 6
    assert all(d in [r["messages"] for r in records] for d in data.dialogues)


def test_a_conversation_longer_than_a_row_is_cut_and_loses_no_answer(tmp_path):
    records = [chat("q" * 100, f"{i}" * 70) for i in range(10, 20)]
    data = load_chats(tmp_path, records, seq_len=64)
    learned = sum(r["weight"].sum() for r in [*rows_of(data.train), *rows_of(data.validation)])
    assert learned == 10 * (140 + len("<|im_end|>"))


def test_conversations_without_an_answer_are_left_out_and_counted(tmp_path, capfd):
    silent = [chat("a", "b", role="user")] * 5
    data = load_chats(tmp_path, [chat("a", "b")] * 20 + silent, seq_len=128)
    assert capfd.readouterr().err.count("5 of 25 conversations are dropped") == 1
    kept = read_back(data.train) + read_back(data.validation)
    assert len(kept) == 20
    assert all(d[1]["role"] == "assistant" for d in data.dialogues)


def test_only_conversations_without_an_answer_are_refused(tmp_path):
    records = [chat("a", "b", role="system")] * 9
    assert "no training conversation" in refusal(load_chats, tmp_path, records, seq_len=128)
    records = [chat("a", "b")] * 8 + [chat("a", "b", role="system")] * 2
    message = refusal(load_chats, tmp_path, records, seq_len=128, split="tail")
    assert "no held-out conversation" in message


def test_characters_of_the_marks_are_in_the_vocabulary(tmp_path):
    data = load_chats(tmp_path, [chat("1", "2")] * 9, tokenizer="char", seq_len=128)
    assert set("<|im_start|>assistant\n") <= set(data.spec.tokenizer.characters)


def test_a_row_by_hand():
    """Rows hold what `framed` makes, in a type as small as the vocabulary allows."""
    tokenizer = ByteTokenizer()
    packed = pack(
        [with_special_tokens(text, tokenizer) for text in ("ab", "c")], 10, tokenizer.size
    )
    (row,) = rows_of(packed)
    assert row["tokens"].tolist() == [256, 97, 98, 256, 256, 99, 256, 0, 0, 0, 0]
    assert row["segments"].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0]
    assert row["weight"].tolist() == [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
