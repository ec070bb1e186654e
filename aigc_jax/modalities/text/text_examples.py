"""Text in each form that `data.format` names: from what a reader found to examples of tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.dataset import Dataset, held_out_split, hold_out, limited
from aigc_jax.data.raw_dataset import RawDataset
from aigc_jax.distributed.processes import log_main
from aigc_jax.modalities.spec import TextSpec
from aigc_jax.modalities.text.chat_format import ANSWER, chatml, plain_turns, render
from aigc_jax.modalities.text.labelled_text import Labelled, Tagged
from aigc_jax.modalities.text.packing import Packed, pack, with_special_tokens
from aigc_jax.modalities.text.streaming_examples import streamed_dataset
from aigc_jax.modalities.text.token_windows import (
    TokenWindows,
    join,
    last_documents,
    parts,
    split_documents,
)
from aigc_jax.modalities.text.tokenizers import Tokenizer, make_tokenizer

OUTSIDE, INSIDE = "O", "I-"  # a tag, and how others begin
HELD = {"messages": "conversations", "words": "words with tags"}


def text_dataset(content: RawDataset, config: Data, ready: Tokenizer | None = None) -> Dataset:
    """The examples of `data.format`.

    Args:
      content: what was read.
      config: the section `data`.
      ready: a tokenizer to use instead of that of `data.tokenizer`.

    Raises:
      UserError: if the source does not have this form, or too little text.
    """
    check_form(content, config)
    if config.format == "stream" and config.eval_stride > config.seq_len:
        raise UserError(
            f"data.eval_stride={config.eval_stride} is more than a window of"
            f" data.seq_len={config.seq_len} predicts: lower it"
        )
    if content.streamed:
        return streamed_dataset(content, config, ready)
    make = dict(stream=_stream, documents=_documents, chat=_chat, labels=_labels, tags=_tags)
    return make[config.format](content, config, ready)


def for_evaluation(content: RawDataset, class_names: Sequence[str]) -> RawDataset:
    """Other data for a trained model: all held out, or what the source itself holds out.

    Args:
      content: what was read.
      class_names: those that the model knows, in its order; empty: it knows none.

    Raises:
      UserError: for a class that it does not know.
    """
    examples = content.splits[held_out_split(content.splits) or "train"]
    if class_names and content.class_names:
        unknown = set(content.class_names) - set(class_names)
        if unknown:
            raise UserError(
                f"the model knows no class '{shorten(min(unknown), 80)}':"
                f" {shorten(', '.join(class_names), 200)} are its classes"
            )
        number = [list(class_names).index(name) for name in content.class_names]

        def renumbered(example: Any) -> Any:
            return lambda: (found := example()) | {"label": number[int(found["label"])]}

        examples = [renumbered(example) for example in examples]
    splits = {"train": examples, "validation": examples}
    return dataclasses.replace(content, splits=splits, class_names=tuple(class_names))


def check_form(content: RawDataset, config: Data) -> None:
    """Raises UserError, saying which forms there are, if `data.format` is none of them."""
    source = shorten(config.source)
    if content.image_shape is not None:
        if config.format != "stream":
            raise UserError(
                f"data.format={config.format} is for text, but data.source='{source}' holds images:"
                " leave data.format out"
            )
        return
    forms = {
        "text": ("stream", "documents", *(["labels"] if content.class_names else [])),
        "messages": ("chat",),
        "words": ("tags",),
    }[content.kind]
    if config.format in forms:
        return
    text = "text without labels" if config.format == "labels" else "text"
    holds = HELD.get(content.kind, text)
    why = f" ({content.unlabelled})" if config.format == "labels" and content.unlabelled else ""
    raise UserError(
        f"data.source='{source}' holds {holds}{why} and cannot serve"
        f" data.format={config.format}: set data.format={' or '.join(forms)}"
    )


def _tokenizer(
    config: Data, ready: Tokenizer | None, train: Sequence[str], held_out: Sequence[str]
) -> Tokenizer:
    """BPE is learned from the training text; the characters are those of all text."""
    if ready is not None:
        return ready
    documents = [*train, *held_out]
    if config.tokenizer == "bpe":
        documents = [p for d in train for p in parts(d)]
    return make_tokenizer(config.tokenizer, documents, config.vocab_size)


# Documents -----------------------------------------------------------------------------------


def _texts(content: RawDataset, config: Data) -> tuple[list[str], list[str]]:
    """The documents to train on and those held out."""
    held = held_out_split(content.splits)
    train = [example()["text"] for example in content.splits["train"]]
    if not any(d.strip() for d in train):
        raise UserError(f"the text of data.source='{shorten(config.source)}' is empty")
    if held is not None:
        held_out = [example()["text"] for example in content.splits[held]]
    elif config.split == "tail":
        train, held_out = last_documents(train, config.validation_fraction)
    else:
        train, held_out = split_documents(train, config.validation_fraction, config.split_seed)
    return limited(train, config), held_out


def _stream(content: RawDataset, config: Data, ready: Tokenizer | None) -> Dataset:
    """Documents joined, as windows that are cut anywhere."""
    length = config.seq_len
    train, held_out = _texts(content, config)
    tokenizer = _tokenizer(config, ready, train, held_out)
    streams = [join(part, tokenizer) for part in (train, held_out)]
    for what, stream in zip(("training", "held-out"), streams, strict=True):
        if len(stream) <= length:
            raise UserError(
                f"the {what} text of data.source='{shorten(config.source)}' has {len(stream)}"
                " tokens,"
                f" too short for windows of data.seq_len={length}: add text or lower data.seq_len"
            )
    return Dataset(
        TextSpec(tokenizer, length),
        TokenWindows(streams[0], length),
        # Half of each held-out window is context, so that no token is judged with little of it.
        TokenWindows(streams[1], length, stride=config.eval_stride or max(length // 2, 1)),
        {"train": train, "validation": held_out},
    )


def _documents(content: RawDataset, config: Data, ready: Tokenizer | None) -> Dataset:
    """Documents packed whole."""
    train, held_out = _texts(content, config)
    if not all(any(d.strip() for d in part) for part in (train, held_out)):
        raise UserError(
            f"data.validation_fraction={config.validation_fraction} of the text of"
            f" data.source='{shorten(config.source)}' leaves nothing to train on or nothing to hold"
            " out"
        )
    tokenizer = _tokenizer(config, ready, train, held_out)
    rows = [
        pack(with_special_tokens(part, tokenizer), config.seq_len, tokenizer.size)
        for part in (train, held_out)
    ]
    spec = TextSpec(tokenizer, config.seq_len, "documents")
    return Dataset(spec, *rows, texts={"train": train, "validation": held_out})


# Examples ------------------------------------------------------------------------------------


def _examples(content: RawDataset, config: Data, what: str) -> tuple[list[Any], list[Any]]:
    """The examples to train on, not limited yet, and those held out."""
    held = held_out_split(content.splits)
    every = [example() for example in content.splits["train"]]
    if held is not None:
        return every, [example() for example in content.splits[held]]
    train, held_out = hold_out(len(every), config, what)
    return [every[i] for i in train], [every[i] for i in held_out]


def _chat(content: RawDataset, config: Data, ready: Tokenizer | None) -> Dataset:
    """Conversations packed whole; only what the assistant says is a target."""
    train, held_out = _examples(content, config, "conversations")
    train, held_out = (
        [example["messages"] for example in part] for part in (limited(train, config), held_out)
    )
    if config.tokenizer == "char":  # which has to spell out the marks of a turn
        plain = [[chatml(d, answer=True) for d in part] for part in (train, held_out)]
    else:
        plain = [[text for d in part for text in plain_turns(d)] for part in (train, held_out)]
    tokenizer = _tokenizer(config, ready, *plain)
    rows = [
        pack((render(d, tokenizer) for d in part), config.seq_len, tokenizer.size)
        for part in (train, held_out)
    ]
    _say_dropped(rows, [train, held_out], config)
    spec = TextSpec(tokenizer, config.seq_len, "chat")
    answered = [d for d in held_out if any(m["role"] == ANSWER for m in d)]
    return Dataset(spec, *rows, dialogues=answered)


def _say_dropped(rows: Sequence[Packed], dialogues: Sequence[list[Any]], config: Data) -> None:
    """Says how many conversations teach nothing; UserError if all of a split do."""
    for what, part in zip(("training", "held-out"), rows, strict=True):
        if not len(part):
            raise UserError(
                f"no {what} conversation of data.source='{shorten(config.source)}' has a message of"
                " the assistant that it could learn: add some"
            )
    dropped = sum(part.dropped for part in rows)
    if dropped:
        log_main(
            f"{dropped} of {sum(map(len, dialogues))} conversations are left out: the assistant"
            " says nothing in them"
        )


def _labels(content: RawDataset, config: Data, ready: Tokenizer | None) -> Dataset:
    """Texts with a class each."""
    train, held_out = _examples(content, config, "texts")
    _check_labels(train, held_out, content.class_names)
    train = limited(train, config)
    plain = [[example["text"] for example in part] for part in (train, held_out)]
    tokenizer = _tokenizer(config, ready, *plain)
    sources = [
        Labelled(texts, [example["label"] for example in part], tokenizer, config.seq_len)
        for texts, part in zip(plain, (train, held_out), strict=True)
    ]
    cut = sum(source.cut for source in sources)
    if cut:
        log_main(
            f"{cut} of {sum(map(len, sources))} texts are longer than"
            f" data.seq_len={config.seq_len}: their ends are cut off"
        )
    return Dataset(TextSpec(tokenizer, config.seq_len, "labels", content.class_names), *sources)


def _check_labels(train: list[Any], held_out: list[Any], names: Sequence[str]) -> None:
    """Raises UserError for a class that occurs only where it cannot be learned."""
    known = {int(example["label"]) for example in train}
    unknown = {int(example["label"]) for example in held_out} - known
    if unknown:
        raise UserError(
            f"the label '{shorten(names[min(unknown)], 80)}' occurs only in held-out texts: add"
            " training texts with it, or change data.split_seed"
        )


def _tags(content: RawDataset, config: Data, ready: Tokenizer | None) -> Dataset:
    """Sentences with a tag for each word."""
    train, held_out = _examples(content, config, "sentences")
    found = {tag for example in (*train, *held_out) for tag in example["tags"]}
    names = content.class_names or (OUTSIDE, *sorted(found - {OUTSIDE}))
    if found - set(names):
        raise UserError(
            f"the model knows no tag '{shorten(min(found - set(names)), 80)}':"
            f" {shorten(', '.join(names), 200)} are its tags"
        )
    number = {name: i for i, name in enumerate(names)}
    inside = frozenset(i for name, i in number.items() if name.startswith(INSIDE))
    train = limited(train, config)
    plain = [[" ".join(example["words"]) for example in part] for part in (train, held_out)]
    tokenizer = _tokenizer(config, ready, *plain)
    sources = [
        Tagged(
            [example["words"] for example in part],
            [[number[tag] for tag in example["tags"]] for example in part],
            tokenizer,
            config.seq_len,
            inside,
        )
        for part in (train, held_out)
    ]
    cut = sum(source.cut for source in sources)
    if cut:
        log_main(
            f"{cut} of {len(train) + len(held_out)} sentences are longer than"
            f" data.seq_len={config.seq_len}: they are split between words"
        )
    return Dataset(TextSpec(tokenizer, config.seq_len, "tags", names), *sources)
