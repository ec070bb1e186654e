"""Documents as tokens: stored, joined into a stream, cut into windows, and held out."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from aigc_jax.modalities.text.tokenizers import Tokenizer

PART = 1 << 20  # characters that are made into tokens at once
LINE = re.compile(r"(?<=\S\n)(?=\S)")  # where a line begins after one that is not blank


def parts(document: str) -> Iterator[str]:
    """A long document in parts that can be made into tokens one by one.

    They begin where a line begins after one that is not blank: byte-level BPE cuts words there
    anyway, so that the tokens are those of the whole.
    """
    start = 0
    while len(document) - start > PART:
        line = LINE.search(document, start + PART)
        if line is None:
            break
        yield document[start : line.start()]
        start = line.start()
    yield document[start:] if start else document


class TokenStore:
    """Tokens in no more memory than their vocabulary needs, growing at the end.

    Args:
      size: of the vocabulary.
    """

    def __init__(self, size: int):
        self._dtype = np.dtype(np.uint16 if size <= 1 << 16 else np.int32)
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data) // self._dtype.itemsize

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        self._data += np.asarray(tokens, self._dtype).tobytes()

    def add_text(self, text: str, tokenizer: Tokenizer) -> None:
        for part in parts(text):
            self.add(tokenizer.encode(part))

    def array(self) -> np.ndarray:
        """All tokens; nothing can be added any more."""
        return np.frombuffer(self._data, self._dtype)


def join(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """All documents as one stream of tokens, a separator before each and after the last."""
    store = TokenStore(tokenizer.size)
    for document in documents:
        store.add([tokenizer.separator])
        store.add_text(document, tokenizer)
    store.add([tokenizer.separator])
    return store.array()


class TokenWindows:
    """A stream as overlapping windows of T + 1 tokens, of which T are predicted.

    Window i predicts the `stride` tokens after position i · stride; the T − stride tokens before
    them are context only, with weight 0, unless nothing came before. With stride = T every token is
    predicted once from its own window.

    Args:
      stream: tokens.
      seq_len: T.
      stride: how many new tokens each window predicts, at most T.
    """

    def __init__(self, stream: np.ndarray, seq_len: int, stride: int | None = None):
        self.stream, self.seq_len = stream, seq_len
        self.stride = stride or seq_len
        self.targets = len(stream) - 1

    def __len__(self) -> int:
        first = max(self.targets - self.seq_len, 0)
        return 1 + -(-first // self.stride)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = index * self.stride
        piece = self.stream[start : start + self.seq_len + 1]
        weight = np.zeros(self.seq_len, np.float32)
        weight[0 if index == 0 else self.seq_len - self.stride : len(piece) - 1] = 1
        tokens = np.zeros(self.seq_len + 1, np.int32)
        tokens[: len(piece)] = piece
        return {"tokens": tokens, "weight": weight}

    def cut(self, start_B: np.ndarray) -> dict[str, np.ndarray]:
        """Whole windows from these places on (B,), or from the last one that has room for one."""
        last = len(self.stream) - self.seq_len - 1
        at_BT = np.minimum(start_B, last)[:, None] + np.arange(self.seq_len + 1)
        weight_BT = np.ones((len(start_B), self.seq_len), np.float32)
        return {"tokens": self.stream[at_BT].astype(np.int32), "weight": weight_BT}


def cut(document: str, pieces: int) -> list[str]:
    """A document cut at line ends into about equal pieces."""
    lines = document.splitlines(keepends=True)
    if len(lines) < pieces:  # few lines: cut between characters
        lines = [document[i : i + 64] for i in range(0, len(document), 64)]
    size, result, current, length = len(document) / pieces, [], [], 0
    for line in lines:
        current.append(line)
        length += len(line)
        if length >= size * (len(result) + 1):
            result.append("".join(current))
            current = []
    return [*result, "".join(current)] if current else result


def split_documents(
    documents: Sequence[str], fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Training and held-out documents, chosen by seed; at least `fraction` of the text is held out.

    A document that is longer than a twentieth of the text is cut into pieces first, so that one
    long file works too.
    """
    total = sum(map(len, documents))
    pieces = [p for d in documents for p in cut(d, max(round(20 * len(d) / total), 1))]
    held_out, length = set(), 0
    for i in np.random.default_rng(seed).permutation(len(pieces)).tolist():
        if length >= fraction * total:
            break
        held_out.add(i)
        length += len(pieces[i])
    train = [d for i, d in enumerate(pieces) if i not in held_out]
    return train, [d for i, d in enumerate(pieces) if i in held_out]


def last_documents(documents: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """The last `fraction` of the documents, or of the characters of a single one, held out."""
    if len(documents) == 1:
        (text,) = documents
        end = int(len(text) * (1 - fraction))
        return [text[:end]], [text[end:]]
    end = int(len(documents) * (1 - fraction))
    return list(documents[:end]), list(documents[end:])
