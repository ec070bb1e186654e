"""Conversations, one a line of JSON."""

from aigc_jax.data.chat import check_messages
from aigc_jax.data.readers.content import Columns, Content, parse_json, read_lines
from aigc_jax.errors import UserError, shown


def read_messages(path: str) -> Content:
    """JSON lines of the form `{"messages": [{"role": …, "content": …}, …]}`.

    Raises:
      UserError: for a line that is not of that form.
    """
    dialogues = []
    for where, line in read_lines(path):
        line = line.removeprefix("\ufeff")
        if line.strip():
            record = parse_json(line, where, ("messages", "role", "content"))
            dialogues.append(check_messages(record, where, training=False))
    if not dialogues:
        raise UserError(f"{shown(path)} holds no conversations")
    return Content({"train": Columns(messages=dialogues)}, holds="messages")
