"""Reads tagged words, one per line, in the format of the CoNLL shared tasks."""

import os
import re
from typing import Any

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.data.lines import is_unicode, read_lines
from aigc_jax.data.raw_dataset import ColumnarExamples, RawDataset

TAG = re.compile(r"O|[BI]-\S+")
# Splits by file name. CoNLL-2003 calls its development set "testa".
SPLIT_NAMES = (
    ("train", re.compile(r"(?<![a-z])train", re.IGNORECASE)),
    ("validation", re.compile(r"(?<![a-z])(dev|valid|val(?![a-z])|testa)", re.IGNORECASE)),
    ("test", re.compile(r"(?<![a-z])test(?!a)", re.IGNORECASE)),
)

Sentence = tuple[list[str], list[str]]  # words and their tags


def read_conll(path: str) -> RawDataset:
    """Reads a file of sentences, or a folder of files named after train, dev, valid or test.

    A line is a word and its tag, with any columns between them; blank lines separate sentences.
    Tags are O, B-TYPE and I-TYPE.

    Raises:
      UserError: if there are no such files, or for a line without word or tag.
    """
    files = {"train": [path]}
    if os.path.isdir(os.path.expanduser(path)):
        files = _split_files(os.path.expanduser(path))
    splits = {}
    for split, paths in files.items():
        sentences = [sentence for file in paths for sentence in read_sentences(file)]
        if not sentences:
            raise UserError(f"{shorten(paths[0])} has no words with tags")
        words, tags = zip(*sentences, strict=True)
        splits[split] = ColumnarExamples(words=words, tags=tags)
    return RawDataset(splits, kind="words")


def _split_files(folder: str) -> dict[str, list[str]]:
    """`{split: files}`, from their names."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(d.name for d in entries if d.is_file() and not d.name.startswith("."))
    except OSError as e:
        raise UserError(f"the folder {shorten(folder)} cannot be read: {one_line(e)}") from e
    found: dict[str, list[str]] = {}
    for name in names:
        split = next((split for split, pattern in SPLIT_NAMES if pattern.search(name)), None)
        if split:
            found.setdefault(split, []).append(os.path.join(folder, name))
    if "train" not in found:
        raise UserError(
            f"the folder {shorten(folder)} has no file with 'train' in its name: it has"
            f" {shorten(', '.join(names), 200) or 'none'}"
        )
    return {split: found[split] for split, _ in SPLIT_NAMES if split in found}


def read_sentences(path: str) -> list[Sentence]:
    """Reads the sentences of one file.

    A line that starts with '#' before a sentence is a comment unless it has as many columns as the
    others and a tag in the last: in tweets '#' starts words. Lines of the word -DOCSTART- are
    ignored.

    Raises:
      UserError: for a line without word or tag.
    """
    sentences: list[Sentence] = [([], [])]
    width = _width(path)
    for where, line in read_lines(path):
        cells = _cells(line)
        if not line.strip() or cells[0] == "-DOCSTART-":
            if sentences[-1][0]:
                sentences.append(([], []))
            continue
        words, tags = sentences[-1]
        tagged = len(cells) > 1 and TAG.fullmatch(cells[-1])
        if cells[0].startswith("#") and not words and not (tagged and len(cells) == width):
            continue
        if not tagged or not cells[0]:
            raise UserError(_complaint(cells, where))
        words.append(cells[0])
        tags.append(cells[-1])
    return sentences if sentences[-1][0] else sentences[:-1]


def _width(path: str) -> int:
    """Returns the number of columns of the first line that cannot be a comment, else 2."""
    rows = (_cells(line) for _, line in read_lines(path) if line.strip())
    return next((len(r) for r in rows if not r[0].startswith(("#", "-DOCSTART-"))), 2)


def _cells(line: str) -> list[str]:
    """Splits a line into columns, at tabs if there are any, else at runs of spaces."""
    line = line.rstrip("\r\n")
    if "\t" in line:
        return [cell.strip(" ") for cell in line.split("\t")]
    return [cell for cell in line.split(" ") if cell.strip()]


def _complaint(cells: list[str], where: str) -> str:
    if len(cells) < 2:
        return f"{where} has no tag: write a word, a tab and its tag"
    if not cells[0]:
        return f"{where} has no word before its tag '{shorten(cells[-1], 40)}'"
    return (
        f"{where} has the tag '{shorten(cells[-1], 40)}' in its last column: it must be O,"
        " B-TYPE or"
        " I-TYPE"
    )


def check_sentence(words: Any, tags: Any, where: str) -> Sentence:
    """Checks an untrusted sentence; UserError names `where` if it is not one."""
    aligned = isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags) > 0
    if not aligned or not all(isinstance(s, str) and s and is_unicode(s) for s in (*words, *tags)):
        raise UserError(f"{where} is not a list of words with as many tags")
    wrong = next((tag for tag in tags if not TAG.fullmatch(tag)), None)
    if wrong is not None:
        raise UserError(
            f"{where} has the tag '{shorten(wrong, 40)}': it must be O, B-TYPE or I-TYPE"
        )
    return words, tags
