"""Reads files of text lines and JSON lines from untrusted sources."""

import json
from collections.abc import Collection, Iterator
from typing import Any

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file

MAX_LINE = 1 << 28  # maximum bytes of a line; bounds memory for files without line ends


def decode_utf8(data: bytes, where: str) -> str:
    """Decodes UTF-8 and keeps a byte order mark; UserError names `where` if it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{where} is not UTF-8 text (byte {e.start}): convert it first") from e


def read_lines(path: str) -> Iterator[tuple[str, str]]:
    """Yields (name for messages, line) for every line of a file, including blank ones.

    Raises:
      UserError: if the file cannot be read or is too large, or a line is too long or not UTF-8.
    """
    name = shorten(path)
    with open_file(path) as f:
        check_memory(file_size(f), f"the text of {name}")
        number = 0
        while line := f.readline(MAX_LINE + 1):
            number += 1
            where = f"line {number} of {name}"
            if len(line) > MAX_LINE:
                raise UserError(
                    f"{where} is longer than {MAX_LINE} bytes: check that it is a file of lines"
                )
            yield where, decode_utf8(line, where).removeprefix("\ufeff" if number == 1 else "")


def parse_json(line: str, where: str, once: Collection[str] = ()) -> Any:
    """Parses untrusted JSON.

    Args:
      line: the text.
      where: its name in messages.
      once: keys that must be unique within each object, at any depth.

    Raises:
      UserError: if it is not JSON, or has one of the keys twice.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            for key in once:
                if sum(name == key for name, _ in pairs) > 1:
                    raise UserError(
                        f"{where} has two values under '{shorten(key, 80)}': remove one"
                    )
        return record

    try:
        return json.loads(line, object_pairs_hook=checked)
    except (ValueError, RecursionError) as e:  # ValueError: also a number of too many digits
        raise UserError(f"{where} is not JSON ({one_line(e)})") from e


def is_unicode(text: str) -> bool:
    """Returns whether UTF-8 can encode the text: it contains no lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
