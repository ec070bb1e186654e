"""Raw data sets of texts, conversations and tagged sentences passed from Python."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.lines import is_unicode
from aigc_jax.data.raw_dataset import ColumnarExamples, RawDataset
from aigc_jax.modalities.text.chat_format import check_messages
from aigc_jax.modalities.text.conll import check_sentence

Texts = tuple[Sequence[Any], Sequence[Any] | None]  # texts and their labels


def labelled_text_dataset(
    splits: Mapping[str, Texts], class_names: Sequence[str] = ()
) -> RawDataset:
    """Builds a raw data set of texts, with classes if all splits have labels.

    Args:
      splits: texts and their labels, by split.
      class_names: classes indexed by integer labels; defaults to the sorted labels.

    Raises:
      UserError: for an item that is not text, or a label that is not a class; it names the field.
    """
    for split, (texts, _) in splits.items():
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not is_unicode(text):
                raise UserError(
                    f"field 'text' of data['{split}']: item {number} is"
                    f" {shorten(repr(text), 80)}, not Unicode text"
                )
    if any(labels is None for _, labels in splits.values()):
        plain = {s: ColumnarExamples(text=_not_blank(texts, s)) for s, (texts, _) in splits.items()}
        return RawDataset(plain, unlabelled="no field 'label' is given")
    named = {
        split: [_label(label, number, split, class_names) for number, label in enumerate(labels)]
        for split, (_, labels) in splits.items()
        if labels is not None
    }
    names = tuple(class_names) or tuple(sorted({n for labels in named.values() for n in labels}))
    index = {name: i for i, name in enumerate(names)}
    return RawDataset(
        {
            split: ColumnarExamples(text=list(texts), label=[index[name] for name in named[split]])
            for split, (texts, _) in splits.items()
        },
        class_names=names,
    )


def messages_dataset(splits: Mapping[str, Sequence[Any]]) -> RawDataset:
    """Builds a raw data set of conversations, lists of `{"role": …, "content": …}`.

    Raises:
      UserError: for an item that is not a conversation.
    """
    found = {}
    for split, dialogues in splits.items():
        checked = [
            check_messages({"messages": dialogue}, f"item {i} of data['{split}']", training=False)
            for i, dialogue in enumerate(dialogues)
        ]
        found[split] = ColumnarExamples(messages=checked)
    return RawDataset(found, kind="messages")


def tagged_text_dataset(
    splits: Mapping[str, tuple[Sequence[Any], Sequence[Any]]],
) -> RawDataset:
    """Builds a raw data set of sentences, lists of words with lists of tags (O, B-TYPE, I-TYPE).

    Raises:
      UserError: for an item that is not such a sentence.
    """
    found = {}
    for split, (words, tags) in splits.items():
        pairs = [
            check_sentence(list(w), list(t), f"item {i} of data['{split}']")
            for i, (w, t) in enumerate(zip(words, tags, strict=True))
        ]
        found[split] = ColumnarExamples(words=[w for w, _ in pairs], tags=[t for _, t in pairs])
    return RawDataset(found, kind="words")


def _not_blank(texts: Sequence[str], split: str) -> list[str]:
    found = [text for text in texts if text.strip()]
    if not found:
        raise UserError(f"field 'text' of data['{split}'] has no text: all items are blank")
    return found


def _label(value: Any, number: int, split: str, class_names: Sequence[str]) -> str:
    """Returns the name of a class."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and class_names and 0 <= value < len(class_names):
        return class_names[value]
    known = not class_names or value in class_names
    if isinstance(value, (bool, int)) and known:
        return str(value).lower()
    if isinstance(value, str) and value.strip() and is_unicode(value) and known:
        return value
    raise UserError(
        f"field 'label' of data['{split}']: item {number} is {shorten(repr(value), 80)}, not a"
        " class: pass a text or an integer"
    )
