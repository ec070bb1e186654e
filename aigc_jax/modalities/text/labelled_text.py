"""Sources of labelled texts, and of sentences with a tag per word.

Shapes: T maximum tokens of an example; arrays have T + 1 positions, for targets shifted by one as
  in language modelling.
"""

from collections.abc import Callable, Sequence

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.data.source import Example
from aigc_jax.modalities.text.token_store import TokenStore
from aigc_jax.modalities.text.tokenizers import Tokenizer

NO_TAG = -1  # tag of tokens that are not the first of a word


class SpecialTokenTemplate:
    """Adds the special tokens before and after the tokens of every example.

    Args:
      tokenizer: its prefix and suffix are added, or the separator if it has none.
      seq_len: T.

    Raises:
      UserError: if `seq_len` leaves no room for text.
    """

    def __init__(self, tokenizer: Tokenizer, seq_len: int):
        self.before = tokenizer.prefix or (tokenizer.separator,)
        self.after = tokenizer.suffix or (tokenizer.separator,)
        self.seq_len = seq_len
        self.room = seq_len - len(self.before) - len(self.after)
        if self.room < 1:
            raise UserError(
                f"data.seq_len={seq_len} leaves no room for text between the"
                f" {seq_len - self.room} tokens around it: raise data.seq_len"
            )

    def apply(self, inner: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `tokens` and `segments` (T+1,) of an example; segment 0 is padding."""
        tokens = np.zeros(self.seq_len + 1, np.int32)
        segments = np.zeros(self.seq_len + 1, np.int32)
        framed = np.concatenate([self.before, inner, self.after])
        tokens[: len(framed)] = framed
        segments[: len(framed)] = 1
        return {"tokens": tokens, "segments": segments}

    def tags(self, inner: np.ndarray) -> np.ndarray:
        """Returns `tags` (T,) of an example."""
        tags = np.full(self.seq_len, NO_TAG, np.int32)
        tags[len(self.before) : len(self.before) + len(inner)] = inner
        return tags


class Labelled:
    """Examples `{"tokens" (T+1), "segments" (T+1), "label", "weight"}`.

    Args:
      texts: one per example; truncated at the end.
      labels: their classes.
      tokenizer: tokenizer.
      seq_len: T.

    Attributes:
      truncated: number of truncated texts.
    """

    def __init__(
        self, texts: Sequence[str], labels: Sequence[int], tokenizer: Tokenizer, seq_len: int
    ):
        self._template = SpecialTokenTemplate(tokenizer, seq_len)
        self._labels = np.array(labels, np.int32)
        store, ends, self.truncated = TokenStore(tokenizer.size), [0], 0
        for text in texts:
            tokens = tokenizer.encode(text)
            self.truncated += len(tokens) > self._template.room
            store.add(tokens[: self._template.room])
            ends.append(len(store))
        self._tokens, self._ends = store.array(), np.array(ends)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        inner = self._tokens[self._ends[index] : self._ends[index + 1]]
        label = {"label": self._labels[index], "weight": np.float32(1)}
        return {**self._template.apply(inner), **label}


class Tagged:
    """Examples `{"tokens" (T+1), "segments" (T+1), "tags" (T), "weight"}`.

    A word's tag is on its first token. Sentences that are too long are split into several examples.

    Args:
      sentences: words of each sentence.
      tags: index of the tag of each word.
      tokenizer: tokenizer.
      seq_len: T.
      inside: tags that continue the entity of the previous word (I-…).
      outside: the tag of words outside all entities (O).

    Attributes:
      divided: number of sentences that were split.
    """

    def __init__(
        self,
        sentences: Sequence[Sequence[str]],
        tags: Sequence[Sequence[int]],
        tokenizer: Tokenizer,
        seq_len: int,
        inside: frozenset[int] = frozenset(),
        outside: int = 0,
    ):
        self._template = SpecialTokenTemplate(tokenizer, seq_len)
        room, encode = self._template.room, word_encoder(tokenizer)
        tokens, marks = TokenStore(tokenizer.size), TokenStore(1 << 31)
        ends, self.divided = [0], 0
        for words, tag in zip(sentences, tags, strict=True):
            coded = [encode(word, i > 0)[:room] for i, word in enumerate(words)]
            before = len(ends)
            for run in runs([len(t) for t in coded], tag, room, inside, outside):
                for i in run:
                    tokens.add(coded[i])
                    marks.add([tag[i]] + [NO_TAG] * (len(coded[i]) - 1))
                ends.append(len(tokens))
            self.divided += len(ends) > before + 1
        self._tokens, self._tags, self._ends = tokens.array(), marks.array(), np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Example:
        inner = slice(self._ends[index], self._ends[index + 1])
        example = self._template.apply(self._tokens[inner])
        return {**example, "tags": self._template.tags(self._tags[inner]), "weight": np.float32(1)}


def word_encoder(tokenizer: Tokenizer) -> Callable[[str, bool], np.ndarray]:
    """Returns a function from (word, whether a space precedes it) to its tokens, at least one.

    A word without tokens is encoded as the separator, to keep its tag.
    """
    known: dict[tuple[str, bool], np.ndarray] = {}
    space = _space(tokenizer)
    nothing = np.array([tokenizer.separator], np.int32)

    def encode(word: str, spaced: bool) -> np.ndarray:
        if (word, spaced) not in known:
            tokens = tokenizer.encode(f"{space}{word}" if spaced else word)
            known[word, spaced] = tokens if len(tokens) else nothing
        return known[word, spaced]

    return encode


def _space(tokenizer: Tokenizer) -> str:
    """Returns the prefix with which a word has the same tokens as within a sentence.

    It is empty for tokenizers that add a space themselves, such as Llama 2's with ▁.
    """
    if tokenizer.pieces is not None:
        return " "
    one, two = tokenizer.encode("a"), tokenizer.encode("a a")
    return "" if np.array_equal(two, np.concatenate([one, one])) else " "


def runs(
    sizes: Sequence[int],
    tags: Sequence[int],
    room: int,
    inside: frozenset[int] = frozenset(),
    outside: int = 0,
) -> list[range]:
    """Splits a sentence into runs of words that fit, if possible next to words outside entities.

    Args:
      sizes: tokens of each word, from 1 to `room`.
      tags: one per word.
      room: maximum tokens of a run.
      inside: tags that continue the entity of the previous word.
      outside: the tag of words outside all entities.
    """
    found, start = [], 0
    while start < len(sizes):
        end, used = start, 0
        while end < len(sizes) and (end == start or used + sizes[end] <= room):
            used += sizes[end]
            end += 1
        if end < len(sizes):
            end = _cut(start, end, tags, inside, outside)
        found.append(range(start, end))
        start = end
    return found


def _cut(start: int, end: int, tags: Sequence[int], inside: frozenset[int], outside: int) -> int:
    """Returns the best end of a run: next to a word outside all entities, else between entities."""
    between = [i for i in range(end, start, -1) if tags[i] not in inside]
    beside = (i for i in between if outside in (tags[i - 1], tags[i]) and 2 * i > start + end)
    return next(beside, between[0] if between else end)
