"""Predicted classes and entities against the true ones: precision, recall, F1, accuracy.

A class that is neither true nor predicted anywhere has no row and no part in the averages, as by
default in scikit-learn and in seqeval. A ratio whose denominator is 0 is 0.
"""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, shorten

AVERAGES = ("micro", "macro", "weighted")
COLUMNS = ("precision", "recall", "f1", "support")


@dataclasses.dataclass(frozen=True)
class Row:
    """The scores of one class, or of an average, from 0 to 1.

    Attributes:
      precision: of what is predicted, the share that is true.
      recall: of what is true, the share that is predicted.
      f1: the harmonic mean of both.
      support: how many are true.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclasses.dataclass(frozen=True)
class Report:
    """How good predictions are, in all and by class.

    Attributes:
      rows: by the name of the class, in the order of the classes; entities by the alphabet.
      micro: all decisions counted alike.
      macro: the mean of the rows.
      weighted: the mean of the rows by support.
      accuracy: the share of examples, or of tags, that are predicted rightly.
      count: how many examples, or tags.
    """

    rows: dict[str, Row]
    micro: Row
    macro: Row
    weighted: Row
    accuracy: float
    count: int

    def table(self, digits: int = 4) -> str:
        """The report for a terminal: a line for each class, then the accuracy and the averages."""
        lines = [("", *COLUMNS), ()]
        lines += [
            (shorten(name, limit=40), *_cells(row, digits)) for name, row in self.rows.items()
        ]
        lines += [()] if self.rows else []
        lines += [("accuracy", "", "", f"{self.accuracy:.{digits}f}", str(self.count))]
        lines += [(f"{a} avg", *_cells(getattr(self, a), digits)) for a in AVERAGES]
        first = max(_width(line[0]) for line in lines if line)
        rest = [max(9, *(len(line[i]) for line in lines if line)) for i in range(1, 5)]

        def aligned(line: tuple[str, ...]) -> str:
            cells = [c.rjust(w) for c, w in zip(line[1:], rest, strict=True)]
            return "  ".join([" " * (first - _width(line[0])) + line[0], *cells])

        return "\n".join(aligned(line) if line else "" for line in lines)

    def metrics(self) -> dict[str, float]:
        """The averages and the accuracy by flat names: `f1_macro`, `precision_micro`, …"""
        scores = {
            f"{column}_{average}": getattr(getattr(self, average), column)
            for column in COLUMNS[:3]
            for average in AVERAGES
        }
        return {**scores, "accuracy": self.accuracy}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Report":
        """The inverse of `to_json`."""
        rows = {name: Row(**row) for name, row in value["classes"].items()}
        averages = {average: Row(**value[average]) for average in AVERAGES}
        return cls(rows, **averages, accuracy=value["accuracy"], count=value["count"])

    def to_json(self) -> dict[str, Any]:
        """All numbers: `classes` by name, the three averages, `accuracy` and `count`."""
        return {
            "classes": {name: dataclasses.asdict(row) for name, row in self.rows.items()},
            **{average: dataclasses.asdict(getattr(self, average)) for average in AVERAGES},
            "accuracy": self.accuracy,
            "count": self.count,
        }


def report(
    true: Sequence[int] | np.ndarray,
    predicted: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
) -> Report:
    """The report on N examples that have one class each; scikit-learn's definitions.

    With one class per example, the micro averages are all equal to the accuracy.

    Args:
      true, predicted: (N,) numbers of classes.
      class_names: (C,) different names.

    Raises:
      UserError: if the numbers do not go together or there is no such class.
    """
    from sklearn.metrics import precision_recall_fscore_support

    true_N, predicted_N = np.asarray(true), np.asarray(predicted)
    _check_classes(true_N, predicted_N, class_names)
    seen = np.union1d(true_N, predicted_N)
    if not len(seen):
        return _from_counts({}, correct=0, count=0)
    scores = precision_recall_fscore_support(true_N, predicted_N, labels=seen, zero_division=0)
    rows = {
        class_names[c]: Row(float(precision), float(recall), float(f1), int(support))
        for c, precision, recall, f1, support in zip(seen, *scores, strict=True)
    }
    averages = {}
    for name in AVERAGES:
        precision, recall, f1, _ = precision_recall_fscore_support(
            true_N, predicted_N, labels=seen, average=name, zero_division=0
        )
        averages[name] = Row(float(precision), float(recall), float(f1), len(true_N))
    accuracy = float((true_N == predicted_N).mean())
    return Report(rows, **averages, accuracy=accuracy, count=len(true_N))


def entity_report(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Report:
    """The report on the entities of tagged sentences, as CoNLL's and seqeval's default give it.

    An entity is found if one of the same type is predicted from the same first to the same last
    word. The accuracy is that of the tags, those outside entities among them.

    Args:
      true, predicted: of each sentence, its tags; see `entities`.

    Raises:
      UserError: if sentences differ in number or length, or a tag is not of the scheme.
    """
    if len(true) != len(predicted):
        raise UserError(
            f"there are predicted tags for {len(predicted)} sentences, but true tags for"
            f" {len(true)}: give both for each"
        )
    # By type: entities found, entities predicted, entities there.
    found: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    there: Counter[str] = Counter()
    correct = count = 0
    for i, (a, b) in enumerate(zip(true, predicted, strict=True)):
        if len(a) != len(b):
            raise UserError(
                f"sentence {i + 1} has {len(b)} predicted tags, but {len(a)} true ones: give both"
                " for each word"
            )
        correct += sum(x == y for x, y in zip(a, b, strict=True))
        count += len(a)
        true_spans, predicted_spans = set(entities(a)), set(entities(b))
        there.update(kind for kind, _, _ in true_spans)
        guessed.update(kind for kind, _, _ in predicted_spans)
        found.update(kind for kind, _, _ in true_spans & predicted_spans)
    kinds = sorted(there.keys() | guessed.keys())
    return _from_counts({k: (found[k], guessed[k], there[k]) for k in kinds}, correct, count)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of one sentence: type, first word and last word of each.

    B-X starts an entity of type X and I-X goes on with it; O is outside. As in CoNLL's evaluation,
    an I-X that has no X before it starts one too (Tjong Kim Sang & De Meulder 2003, IOB1 and IOB2
    alike). E-X, which ends one, and S-X, which is one, are understood as well.

    Raises:
      UserError: if a tag is none of these.
    """
    spans: list[tuple[str, int, int]] = []
    going_on = False  # whether the word before leaves its entity open
    for i, tag in enumerate(tags):
        letter, kind = _parse(tag)
        if letter == "O":
            going_on = False
            continue
        if going_on and letter in "IE" and spans[-1][0] == kind:
            spans[-1] = (kind, spans[-1][1], i)
        else:
            spans.append((kind, i, i))
        going_on = letter in "BI"
    return spans


def is_bio(class_names: Sequence[str]) -> bool:
    """Whether tags of these names mark entities, so that `entity_report` can read them.

    Other tags, such as parts of speech, are for `report`, word by word.
    """
    try:
        return bool({_parse(name)[0] for name in class_names} - {"O"})
    except UserError:
        return False


def _parse(tag: str) -> tuple[str, str]:
    """The letter and the type of a tag."""
    letter, dash, kind = tag.partition("-")
    if tag != "O" and not (letter in ("B", "I", "E", "S") and dash and kind):
        raise UserError(
            f"'{shorten(tag, limit=40)}' is no tag of an entity: tags are O, or B- and I- before a"
            " type"
        )
    return letter, kind


def _from_counts(counts: dict[str, tuple[int, int, int]], correct: int, count: int) -> Report:
    """The report from, by class, how many are found, predicted and there."""
    rows = {name: _row(*c) for name, c in counts.items()}
    support = sum(row.support for row in rows.values())
    scores = [(r.precision, r.recall, r.f1) for r in rows.values()] or [(0.0, 0.0, 0.0)]

    def mean(weights: list[int]) -> Row:
        total = sum(weights) or 1
        columns = zip(*scores, strict=True)
        sums = [sum(w * x for w, x in zip(weights, c, strict=True)) for c in columns]
        precision, recall, f1 = (s / total for s in sums)
        return Row(precision, recall, f1, support)

    return Report(
        rows,
        micro=_row(*(sum(c) for c in zip((0, 0, 0), *counts.values(), strict=True))),
        macro=mean([1] * len(scores)),
        weighted=mean([row.support for row in rows.values()] or [0]),
        accuracy=correct / max(count, 1),
        count=count,
    )


def _row(found: int, predicted: int, there: int) -> Row:
    precision, recall = found / max(predicted, 1), found / max(there, 1)
    # The harmonic mean, from the counts: 0 where nothing is found.
    return Row(precision, recall, 2 * found / max(predicted + there, 1), there)


def _check_classes(true_N: np.ndarray, predicted_N: np.ndarray, class_names: Sequence[str]) -> None:
    if len(true_N) != len(predicted_N):
        raise UserError(
            f"there are {len(predicted_N)} predicted classes for {len(true_N)} examples: give one"
            " for each"
        )
    for name, times in Counter(class_names).items():
        if times > 1:
            raise UserError(f"{times} classes are called '{shorten(name, 40)}': rename one")
    both = np.concatenate([true_N, predicted_N])
    if len(both) and both.dtype.kind not in "iu":
        raise UserError("classes are given by other things than whole numbers: give their numbers")
    if len(both) and not 0 <= both.min() <= both.max() < len(class_names):
        wrong = both.max() if both.max() >= len(class_names) else both.min()
        raise UserError(
            f"a class has the number {wrong}, but there are {len(class_names)} names: numbers start"
            " at 0, and each needs a name"
        )


def _cells(row: Row, digits: int) -> tuple[str, ...]:
    scores = (row.precision, row.recall, row.f1)
    return (*(f"{x:.{digits}f}" for x in scores), str(row.support))


def _width(text: str) -> int:
    """Columns of a terminal that a text takes; Chinese characters take two."""
    letters = [c for c in text if unicodedata.category(c) not in ("Mn", "Me")]
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in letters)
