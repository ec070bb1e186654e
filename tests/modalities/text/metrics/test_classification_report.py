"""Reports on classes against scikit-learn, on entities against seqeval, and their forms."""

import json
import unicodedata
import warnings

import numpy as np
import pytest
import seqeval.metrics
import seqeval.metrics.sequence_labeling
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.core.errors import UserError
from aigc_jax.modalities.text.metrics.classification_report import (
    Row,
    entities,
    entity_report,
    is_bio,
    report,
)

NAMES = ("cat", "体育", "dog", "never")
LABELS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30)
BIO = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-A-B", "B-A-B"])
BIOES = st.sampled_from(["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y"])


def sentences(tag):
    """Lists of sentences, each word with its true and its predicted tag, often the same."""
    word = st.one_of(tag.map(lambda t: (t, t)), st.tuples(tag, tag))
    return st.lists(st.lists(word, max_size=9), min_size=1, max_size=4)


def sides(drawn):
    return ([[word[side] for word in sentence] for sentence in drawn] for side in (0, 1))


def plain(row):
    return {"precision": row.precision, "recall": row.recall, "f1-score": row.f1} | {
        "support": row.support
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(LABELS)
def test_report_is_that_of_scikit_learn(pairs):
    true, predicted = np.array(pairs).T
    mine = report(true, predicted, NAMES)
    theirs = sklearn.metrics.classification_report(
        true, predicted, output_dict=True, zero_division=0
    )
    seen = sorted(set(true) | set(predicted))
    assert list(mine.rows) == [NAMES[c] for c in seen]
    for c in seen:
        assert plain(mine.rows[NAMES[c]]) == pytest.approx(theirs[str(c)])
    assert plain(mine.macro) == pytest.approx(theirs["macro avg"])
    assert plain(mine.weighted) == pytest.approx(theirs["weighted avg"])
    assert mine.accuracy == pytest.approx(theirs["accuracy"])
    assert plain(mine.micro) == pytest.approx(
        {**dict.fromkeys(("precision", "recall", "f1-score"), mine.accuracy), "support": len(true)}
    )


def test_report_by_hand():
    mine = report([0, 0, 0, 1], [0, 0, 2, 1], NAMES)
    assert mine.rows == {
        "cat": Row(1.0, 2 / 3, 0.8, 3),
        "体育": Row(1.0, 1.0, 1.0, 1),
        "dog": Row(0.0, 0.0, 0.0, 0),
    }
    assert mine.accuracy == mine.micro.f1 == 0.75 and mine.count == 4
    assert mine.macro.f1 == pytest.approx(1.8 / 3)
    assert mine.weighted.f1 == pytest.approx((3 * 0.8 + 1) / 4)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(sentences(BIO), sentences(BIOES)))
def test_entities_are_those_of_seqeval(drawn):
    for tags in next(iter(sides(drawn))):
        assert entities(tags) == seqeval.metrics.sequence_labeling.get_entities(tags)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(sentences(BIO), sentences(BIOES)))
def test_entity_report_is_that_of_seqeval(drawn):
    true, predicted = sides(drawn)
    mine = entity_report(true, predicted)
    if any(true):
        assert mine.accuracy == seqeval.metrics.accuracy_score(true, predicted)
    assert mine.count == sum(map(len, true))
    if not any(map(entities, true + predicted)):
        assert mine.rows == {} and mine.micro == mine.macro == mine.weighted == Row(0, 0, 0, 0)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of divisions by zero
        theirs = seqeval.metrics.classification_report(
            true, predicted, output_dict=True, zero_division=0
        )
        for average in ("micro", "macro", "weighted"):
            row = getattr(mine, average)
            for name, value in zip(
                ("precision", "recall", "f1"), (row.precision, row.recall, row.f1), strict=True
            ):
                function = getattr(seqeval.metrics, f"{name}_score")
                expected = function(true, predicted, average=average, zero_division=0)
                assert value == pytest.approx(expected)
    rows = {**mine.rows, **{f"{a} avg": getattr(mine, a) for a in ("micro", "macro", "weighted")}}
    assert list(rows) == list(theirs)
    for name, row in rows.items():
        assert plain(row) == pytest.approx(theirs[name])


@pytest.mark.parametrize(
    "tags, spans",
    [
        ("B-X I-X O B-Y", [("X", 0, 1), ("Y", 3, 3)]),
        ("B-X B-X I-X", [("X", 0, 0), ("X", 1, 2)]),
        ("O I-X I-X", [("X", 1, 2)]),
        ("B-Y I-X I-X", [("Y", 0, 0), ("X", 1, 2)]),
        ("I-X O I-X", [("X", 0, 0), ("X", 2, 2)]),
        ("B-A-B I-A-B I-A", [("A-B", 0, 1), ("A", 2, 2)]),
        ("S-X I-X E-X E-X", [("X", 0, 0), ("X", 1, 2), ("X", 3, 3)]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_by_hand(tags, spans):
    assert entities(tags.split()) == spans


def test_an_entity_must_be_found_whole_and_in_its_own_sentence():
    """One of two entities is found whole; of three predicted ones, one ends a word early."""
    true = [["B-PER", "I-PER", "O"], ["B-LOC", "O"]]
    predicted = [["B-PER", "O", "O"], ["B-LOC", "I-PER"]]
    mine = entity_report(true, predicted)
    assert mine.rows == {"LOC": Row(1.0, 1.0, 1.0, 1), "PER": Row(0.0, 0.0, 0.0, 1)}
    assert mine.micro == Row(1 / 3, 1 / 2, 2 / 5, 2) and mine.accuracy == 3 / 5
    # An entity does not go on in the next sentence.
    assert entity_report([["B-X"], ["I-X"]], [["B-X"], ["I-X"]]).micro.support == 2


@pytest.mark.parametrize("tag", ["NOUN", "B", "B-", "", "-X", "o", "L-X", "BX", "I_X"])
def test_other_tags_are_refused(tag):
    with pytest.raises(UserError, match="no tag of an entity"):
        entity_report([["O", tag]], [["O", "O"]])
    assert not is_bio(["O", "B-X", tag])


def test_is_bio_knows_tags_of_entities():
    assert (
        is_bio(["O", "B-X", "I-X"]) and is_bio(["I-LOC"]) and not is_bio(["O"]) and not is_bio([])
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0, 1], [0], ["a", "b"]), "1 predicted classes for 2 examples"),
        (([0, 2], [0, 0], ["a", "b"]), "number 2, but there are 2 names"),
        (([0, 0], [0, -1], ["a", "b"]), "number -1"),
        (([0], [1], ["a", "a"]), "2 classes are called 'a'"),
        ((["a"], ["b"], ["a", "b"]), "whole numbers"),
        (([0.5], [0.0], ["a", "b"]), "whole numbers"),
    ],
)
def test_classes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        report(*arguments)


def test_tags_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match=r"1 sentences.* 2"):
        entity_report([["O"], ["O"]], [["O"]])
    with pytest.raises(UserError, match=r"sentence 2 .*2 .*1"):
        entity_report([["O"], ["O"]], [["O"], ["O", "O"]])


@pytest.mark.parametrize("empty", [report([], [], NAMES), entity_report([], [])])
def test_nothing_to_report_is_zero(empty):
    assert set(empty.metrics().values()) == {0} and empty.rows == {} and empty.count == 0
    assert "accuracy" in empty.table()


def test_metrics_are_flat_and_json_is_whole():
    mine = report([0, 0, 0, 1], [0, 0, 2, 1], NAMES)
    names = [
        f"{s}_{a}" for s in ("precision", "recall", "f1") for a in ("micro", "macro", "weighted")
    ]
    metrics = mine.metrics()
    assert sorted(metrics) == sorted([*names, "accuracy"])
    assert metrics["recall_macro"] == mine.macro.recall and metrics["f1_micro"] == mine.micro.f1
    assert all(type(value) is float for value in metrics.values())
    read = json.loads(json.dumps(mine.to_json()))
    assert read == mine.to_json()
    assert read["classes"]["cat"] == {"precision": 1, "recall": 2 / 3, "f1": 0.8, "support": 3}
    assert read["weighted"]["f1"] == mine.weighted.f1 and read["count"] == 4
    assert read["accuracy"] == 0.75


def width(line):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_table_is_aligned_and_complete():
    table = report([0, 0, 0, 1], [0, 0, 2, 1], NAMES).table()
    lines = [line for line in table.splitlines() if line]
    assert [line.split()[0] for line in lines] == [
        *("precision", "cat", "体育", "dog"),
        *("accuracy", "micro", "macro", "weighted"),
    ]
    assert len({width(line) for line in lines}) == 1
    assert lines[1].split() == ["cat", "1.0000", "0.6667", "0.8000", "3"]
    assert lines[4].split() == ["accuracy", "0.7500", "4"]
    assert entity_report([["B-X"]], [["B-X"]]).table(2).splitlines()[2].split() == [
        *("X", "1.00", "1.00", "1.00", "1")
    ]


def test_names_of_classes_cannot_break_the_table():
    names = ["a\nb\x1b[31m", "n" * 500]
    table = report([0, 1], [0, 1], names).table()
    assert "\x1b" not in table and len(table.splitlines()) == 9
    assert max(map(len, table.splitlines())) < 100
