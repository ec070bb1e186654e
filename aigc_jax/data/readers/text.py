"""Text files and JSON lines."""

import glob
import json
import os

from aigc_jax.data.readers.content import Content, decode, open_file
from aigc_jax.errors import UserError


def read_text(pattern: str) -> Content:
    """Text files, one document each; `pattern` is a path with wildcards."""
    files = sorted(f for f in glob.glob(os.path.expanduser(pattern), recursive=True))
    files = [f for f in files if os.path.isfile(f)]
    if not files:
        raise UserError(f"no file matches {pattern}")
    documents = []
    for file in files:
        with open_file(file) as f:
            documents.append(decode(f.read(), file))
    return _text_content(documents, pattern)


def read_jsonl(path: str, text_field: str = "text") -> Content:
    """One JSON object a line; its `text_field` is the document."""
    documents = []
    with open_file(path) as f:
        for number, line in enumerate(f, 1):
            where = f"line {number} of {path}"
            if not line.strip():
                continue
            try:
                record = json.loads(decode(line, where))
            except (ValueError, RecursionError) as e:
                raise UserError(f"{where} is not JSON ({e})") from e
            text = record.get(text_field) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise UserError(
                    f"{where} has no text under '{text_field}': name the field with --text_field"
                )
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as e:
                raise UserError(f"{where} is not Unicode text ({e})") from e
            documents.append(text)
    return _text_content(documents, path)


def _text_content(documents: list[str], where: str) -> Content:
    documents = [d for d in documents if d.strip()]
    if not documents:
        raise UserError(f"{where} holds no text")
    return Content({"train": [lambda d=d: {"text": d} for d in documents]})
