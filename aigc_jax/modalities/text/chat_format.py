"""Conversations as text and as tokens, in the ChatML format.

A turn is `<|im_start|>role`, a line end, the content, `<|im_end|>` and a line end.
Shapes: N tokens of a conversation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.modalities.text.hf_tokenizer import IM_END, IM_START
from aigc_jax.modalities.text.tokenizers import Tokenizer

ROLES = ("system", "user", "assistant")
ANSWER = "assistant"  # the role whose messages are targets

Message = dict[str, str]  # "role", one of `ROLES`, and "content"


def check_messages(value: Any, where: str, *, training: bool = True) -> list[Message]:
    """Checks an untrusted conversation and returns its messages.

    Args:
      value: parsed JSON of the form `{"messages": [{"role": …, "content": …}, …]}`; other keys are
        ignored.
      where: its name in messages, such as "line 3 of chats.jsonl".
      training: whether it is for training, so that a message of the assistant is required.

    Raises:
      UserError: if it is not a conversation; it names the message.
    """
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where} has no list of messages: it must be of the form"
            ' {"messages": [{"role": "user", "content": "…"}, …]}'
        )
    checked = [_message(m, f"message {i} of {where}") for i, m in enumerate(messages, 1)]
    if training and not any(m["role"] == ANSWER for m in checked):
        raise UserError(
            f"no message of {where} has the role '{ANSWER}', so there is nothing to learn: remove"
            " the conversation"
        )
    return checked


def _message(value: Any, where: str) -> Message:
    role, content = (
        value.get(key) if isinstance(value, dict) else None for key in ("role", "content")
    )
    if role not in ROLES:
        raise UserError(
            f"{where} has the role {shorten(repr(role), 80)}: it must be one of {', '.join(ROLES)}"
        )
    if not isinstance(content, str):
        raise UserError(f"{where} has no text as its 'content': add one")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as e:
        raise UserError(f"{where} is not Unicode text (at character {e.start}): correct it") from e
    return {"role": role, "content": content}


def chatml(messages: Sequence[Message], *, answer: bool = False) -> str:
    """Renders a conversation as text; `answer` appends the head of an assistant's turn."""
    turns = [f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages]
    return "".join([*turns, f"{IM_START}{ANSWER}\n" if answer else ""])


def plain_turns(messages: Sequence[Message]) -> list[str]:
    """Returns role and content of each message, without special tokens."""
    return [f"{m['role']}\n{m['content']}" for m in messages]


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, *, answer: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Renders a conversation as tokens, and their weights as targets.

    A message's text is never encoded as a special token. Tokenizers without these special tokens
    (byte, char) spell them out; there, a message that contains them is read as several turns.

    Args:
      messages: from `check_messages`.
      tokenizer: tokenizer; its `prefix` is not added.
      answer: whether to append the head of an assistant's turn, for the model to continue.

    Returns:
      Tokens (N,) int32, and weights (N,) float32: 1 for an assistant's content and the <|im_end|>
      after it, else 0.

    Raises:
      UserError: for a character that the tokenizer does not have.
    """
    start, end = tokenizer.special(IM_START), tokenizer.special(IM_END)
    parts: list[tuple[Sequence[int] | np.ndarray, bool]] = []
    for m in messages:
        head, content = _turn(m, tokenizer)
        learned = m["role"] == ANSWER
        parts += [(start, False), (head, False), (content, learned), (end, learned)]
        parts.append((tokenizer.encode("\n"), False))
    if answer:
        parts += [(start, False), (tokenizer.encode(f"{ANSWER}\n"), False)]
    tokens = [np.asarray(part, np.int32) for part, _ in parts]
    weight = [np.full(len(part), learned, np.float32) for part, learned in parts]
    return (
        np.concatenate([np.zeros(0, np.int32), *tokens]),
        np.concatenate([np.zeros(0, np.float32), *weight]),
    )


def _turn(message: Message, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of role and line end, and those of the content.

    They are tokenized as one text, as in Hugging Face's templates. But in an assistant's turn no
    token may span the boundary, as a model continues after the line end.
    """
    head = tokenizer.encode(f"{message['role']}\n")
    turn = tokenizer.encode(f"{message['role']}\n{message['content']}")
    if message["role"] != ANSWER or np.array_equal(turn[: len(head)], head):
        return turn[: len(head)], turn[len(head) :]
    return head, tokenizer.encode(message["content"])


def turn_end(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Returns the stop strings of an assistant's turn: () if <|im_end|> is a single token."""
    return () if len(tokenizer.special(IM_END)) == 1 else (IM_END,)
