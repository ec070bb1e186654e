"""Text that is too long for memory, in the forms in which documents can be read as they are needed.

Only so much of it is read at once as learning a vocabulary and judging a model need.
"""

from collections.abc import Callable, Sequence
from typing import Any

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.dataset import Dataset, Source, files_of, held_out_split, hold_out, limited
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.data.shuffle import permutation
from aigc_jax.distributed.processes import log_main
from aigc_jax.modalities.spec import TextSpec
from aigc_jax.modalities.text.chat_format import ANSWER, plain_turns, render
from aigc_jax.modalities.text.packing import Document, pack, with_special_tokens
from aigc_jax.modalities.text.streaming import StreamingSource
from aigc_jax.modalities.text.token_windows import TokenWindows, join, parts
from aigc_jax.modalities.text.tokenizers import Tokenizer, make_tokenizer

FORMS = ("stream", "documents", "chat")
LEARNED = 1 << 26  # characters from which a vocabulary is learned
JUDGED = 1 << 24  # characters of held-out documents that are judged

Read = Callable[[int], Any]  # the text or the conversation of a number


def streamed_dataset(content: RawDataset, config: Data, ready: Tokenizer | None = None) -> Dataset:
    """The examples of `data.format`, of which only the held-out ones are in memory.

    Args:
      content: what was found; its examples are read when they are called.
      config: the section `data`.
      ready: a tokenizer to use instead of that of `data.tokenizer`.

    Raises:
      UserError: if there is nothing to hold out, or a vocabulary would need all the text.
    """
    train, held = content.splits["train"], held_out_split(content.splits)
    if held is None:
        indices, held_out = hold_out(len(train), config, "documents")
        judged = _first(train, held_out, config.format)
    else:
        indices = range(len(train))
        judged = _first(
            content.splits[held], permutation(len(content.splits[held]), 0), config.format
        )
    indices = limited(indices, config)
    key = "messages" if config.format == "chat" else "text"

    def read(number: int) -> Any:
        return train[int(indices[number])]()[key]

    tokenizer = ready or _tokenizer(read, len(indices), config)
    document, validation = _form(read, judged, tokenizer, config)
    if not len(validation):
        raise UserError(
            f"the held-out text of data.source='{shorten(config.source)}' has nothing to"
            " predict: add"
            " some or raise data.validation_fraction"
        )
    answered = [d for d in judged if config.format == "chat" and _answered(d)]
    log_main(
        f"the text, more than data.in_memory={config.in_memory} bytes, is read as it is needed;"
        f" {len(judged)} held-out documents are judged"
    )
    files = files_of(train, indices, config)
    return Dataset(
        TextSpec(tokenizer, config.seq_len, config.format),
        StreamingSource(document, len(indices), config.seq_len, files, config.format == "stream"),
        validation,
        dialogues=answered,
    )


def _first(examples: Sequence[Any], indices: Sequence[int], form: str) -> list[Any]:
    """The first of these documents, so many as are judged."""
    found, size = [], 0
    for i in indices:
        value = examples[int(i)]()["messages" if form == "chat" else "text"]
        found.append(value)
        size += len(_plain(value))
        if size >= JUDGED:
            break
    return found


def _plain(value: str | list[Any]) -> str:
    return value if isinstance(value, str) else "\n".join(plain_turns(value))


def _answered(dialogue: list[Any]) -> bool:
    return any(m["role"] == ANSWER for m in dialogue)


def _tokenizer(read: Read, count: int, config: Data) -> Tokenizer:
    """BPE is learned from some of the training text; the characters of all of it nobody knows."""
    if config.tokenizer == "char":
        raise UserError(
            "data.tokenizer=char needs all text, of which there is more than data.in_memory"
            f"={config.in_memory} bytes: use byte, bpe or file:FILE"
        )
    texts, size = [], 0
    for number in permutation(count, 0) if config.tokenizer == "bpe" else ():
        texts += parts(_plain(read(int(number))))
        size += len(texts[-1])
        if size >= LEARNED:
            break
    return make_tokenizer(config.tokenizer, texts, config.vocab_size)


def _form(
    read: Read, judged: list[Any], tokenizer: Tokenizer, config: Data
) -> tuple[Callable[[int], Document], Source]:
    """How a document is made into tokens, and the held-out examples."""
    length = config.seq_len
    if config.format == "stream":
        stream = join(judged, tokenizer)
        windows = TokenWindows(stream, length, stride=config.eval_stride or max(length // 2, 1))

        def line(number: int) -> Document:
            return join([read(number)], tokenizer)[:-1], None  # the next one begins with it

        return line, windows if len(stream) > length else []
    if config.format == "documents":
        rows = pack(with_special_tokens(judged, tokenizer), length, tokenizer.size)
        return lambda number: next(with_special_tokens([read(number)], tokenizer)), rows
    rows = pack((render(d, tokenizer) for d in judged), length, tokenizer.size)
    return lambda number: render(read(number), tokenizer), rows
