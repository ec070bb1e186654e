"""Reads text files and JSON lines."""

import glob
import os
from typing import Any

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file
from aigc_jax.data.lines import decode_utf8, is_unicode, parse_json, read_lines
from aigc_jax.data.raw_dataset import ColumnarExamples, RawDataset


def read_text(pattern: str) -> RawDataset:
    """Reads text files, one document each; `pattern` is a path with wildcards.

    `**` matches any number of folders, except hidden ones and links, which may be cyclic.

    Raises:
      UserError: if nothing matches, or a file is not UTF-8 text.
    """
    try:
        matches = _matching(os.path.expanduser(pattern))
    except (ValueError, RecursionError) as e:  # a NUL, invalid Unicode, or too many nested folders
        raise UserError(f"{shorten(pattern)} is not a path: {one_line(e)}") from e
    files = [f for f in sorted(matches) if os.path.isfile(f)]
    if not files:
        raise UserError(f"no file matches {shorten(pattern)}")
    documents, total = [], 0
    for file in files:
        with open_file(file) as f:
            total += file_size(f)
            check_memory(total, f"the text of {shorten(pattern)}")
            documents.append(decode_utf8(f.read(), shorten(file)).removeprefix("\ufeff"))
    return _text_content(documents, pattern, "text files have none")


def _matching(pattern: str) -> set[str]:
    """Returns the matching paths; glob's own `**` follows cyclic links."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return set(glob.glob(pattern))
    at = parts.index("**")
    head, tail = os.sep.join(parts[:at]), os.sep.join(parts[at + 1 :]) or "*"
    # The first part of an absolute pattern is empty.
    roots = _matching(head) if head else {os.sep if at else os.curdir}
    found = set()
    for root in roots:
        for folder, inside, _ in os.walk(root):
            inside[:] = [d for d in inside if not d.startswith(".")]
            found |= _matching(os.path.join(glob.escape(folder), tail))
    return found


def read_jsonl(path: str, text_field: str = "text", label_field: str = "label") -> RawDataset:
    """Reads JSON lines: the document from `text_field`, its class from `label_field`.

    Labels are texts, integers or booleans; they are ignored unless every document has one.

    Raises:
      UserError: for a line that is too long, not JSON or without text under `text_field`.
    """
    documents: list[str] = []
    labels: list[str] = []
    unlabelled = ""
    for where, line in read_lines(path):
        line = line.removeprefix("\ufeff")
        if not line.strip():
            continue
        record = parse_json(line, where, (text_field, label_field))
        text = _text_of(record, text_field, where)
        if not text.strip():
            continue
        documents.append(text)
        label = _label_of(record, label_field)
        if label is not None:
            labels.append(label)
        elif not unlabelled:
            unlabelled = f"{where} has no text or integer under '{shorten(label_field, 80)}'"
    if unlabelled:
        return _text_content(documents, path, unlabelled)
    content = _text_content(documents, path)
    names = sorted(set(labels))
    index = {name: i for i, name in enumerate(names)}
    content.splits = {
        "train": ColumnarExamples(text=documents, label=[index[label] for label in labels])
    }
    content.class_names = tuple(names)
    return content


def _text_of(record: Any, field: str, where: str) -> str:
    """Returns the text of one record; UserError with `where` if it has none."""
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(
            f"{where} has no text under '{shorten(field, 80)}': name the field with --text_field"
            " (data.text_field in a config)"
        )
    if not is_unicode(text):
        raise UserError(f"{where} is not Unicode text: correct it")
    return text


def _label_of(record: dict[str, Any], field: str) -> str | None:
    """Returns the class of one record; None if it has none."""
    value = record.get(field)
    if isinstance(value, (bool, int)):
        return str(value).lower()
    return value if isinstance(value, str) and value.strip() and is_unicode(value) else None


def _text_content(documents: list[str], where: str, unlabelled: str = "") -> RawDataset:
    documents = [d for d in documents if d.strip()]
    if not documents:
        raise UserError(f"{shorten(where)} has no text")
    return RawDataset({"train": ColumnarExamples(text=documents)}, unlabelled=unlabelled)
