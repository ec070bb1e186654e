"""Text files and JSON lines."""

import glob
import json
import os
from typing import Any

from aigc_jax.data.readers.content import Content, decode
from aigc_jax.errors import UserError, reason, shown
from aigc_jax.files import check_memory, file_size, open_file

MAX_LINE = 1 << 28  # bytes of a JSON line; a file without line ends is read no further


def read_text(pattern: str) -> Content:
    """Text files, one document each; `pattern` is a path with wildcards.

    `**` is any number of folders, but hidden ones and links to folders, which may lead in circles.

    Raises:
      UserError: if nothing matches, or a file is no UTF-8 text.
    """
    try:
        matches = _matching(os.path.expanduser(pattern))
    except (ValueError, RecursionError) as e:  # a NUL, no Unicode, thousands of folders
        raise UserError(f"{shown(pattern)} is not a path: {reason(e)}") from e
    files = [f for f in sorted(matches) if os.path.isfile(f)]
    if not files:
        raise UserError(f"no file matches {shown(pattern)}")
    documents, total = [], 0
    for file in files:
        with open_file(file) as f:
            total += file_size(f)
            check_memory(total, f"the text of {shown(pattern)}")
            documents.append(decode(f.read(), shown(file)))
    return _text_content(documents, pattern)


def _matching(pattern: str) -> set[str]:
    """The paths that match; glob's own `**` would go round links in circles."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return set(glob.glob(pattern))
    at = parts.index("**")
    head, tail = os.sep.join(parts[:at]), os.sep.join(parts[at + 1 :]) or "*"
    # An absolute pattern has an empty first part.
    roots = _matching(head) if head else {os.sep if at else os.curdir}
    found = set()
    for root in roots:
        for folder, inside, _ in os.walk(root):
            inside[:] = [d for d in inside if not d.startswith(".")]
            found |= _matching(os.path.join(glob.escape(folder), tail))
    return found


def read_jsonl(path: str, text_field: str = "text") -> Content:
    """One JSON object a line; its `text_field` is the document.

    Raises:
      UserError: for a line that is too long, not JSON or without text under `text_field`.
    """
    documents, number = [], 0
    with open_file(path) as f:
        while line := f.readline(MAX_LINE + 1):
            number += 1
            where = f"line {number} of {shown(path)}"
            if len(line) > MAX_LINE:
                raise UserError(f"{where} is longer than {MAX_LINE} bytes: is it JSON lines?")
            if line.removeprefix(b"\xef\xbb\xbf").strip():
                documents.append(_json_text(decode(line, where), text_field, where))
    return _text_content(documents, path)


def _json_text(line: str, text_field: str, where: str) -> str:
    """The text of one line; UserError names `where` it has none."""
    field = shown(text_field, 80)

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if sum(key == text_field for key, _ in pairs) > 1:
            raise UserError(f"{where} has two texts under '{field}': leave one")
        return dict(pairs)

    try:
        record = json.loads(line, object_pairs_hook=checked)
    except (ValueError, RecursionError) as e:  # ValueError: also a number of too many digits
        raise UserError(f"{where} is not JSON ({reason(e)})") from e
    text = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{where} has no text under '{field}': name the field with --text_field")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise UserError(f"{where} is not Unicode text ({reason(e)}): mend it") from e
    return text


def _text_content(documents: list[str], where: str) -> Content:
    documents = [d for d in documents if d.strip()]
    if not documents:
        raise UserError(f"{shown(where)} holds no text")
    return Content({"train": [lambda d=d: {"text": d} for d in documents]})
