"""Reads conversations, one per line of JSON."""

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.lines import parse_json, read_lines
from aigc_jax.data.raw_dataset import ColumnarExamples, RawDataset
from aigc_jax.modalities.text.chat_format import check_messages


def read_messages(path: str) -> RawDataset:
    """Reads JSON lines of the form `{"messages": [{"role": …, "content": …}, …]}`.

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
        raise UserError(f"{shorten(path)} has no conversations")
    return RawDataset({"train": ColumnarExamples(messages=dialogues)}, kind="messages")
