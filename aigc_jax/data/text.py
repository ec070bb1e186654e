"""Tokenizers, and token windows cut from documents."""

from collections.abc import Sequence

import numpy as np

from aigc_jax.errors import UserError


class ByteTokenizer:
    """UTF-8 bytes, and one separator between documents."""

    name = "byte"
    separator = 256
    size = 257

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)
        except UnicodeEncodeError as e:
            raise UserError(f"the text is not valid Unicode (at character {e.start})") from e

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens up to the first separator; broken UTF-8 becomes '�'."""
        return bytes(_until(tokens, self.separator)).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """How many bytes of text each token stands for, (V,)."""
        return np.array([1] * 256 + [0])


class CharTokenizer:
    """The characters of a text, and one separator between documents."""

    name = "char"

    def __init__(self, characters: Sequence[str]):
        self.characters = list(characters)
        self.index = {c: i for i, c in enumerate(self.characters)}
        self.separator = len(self.characters)
        self.size = len(self.characters) + 1

    @classmethod
    def of(cls, documents: Sequence[str]) -> "CharTokenizer":
        return cls(sorted(set().union(*documents)))

    def encode(self, text: str) -> np.ndarray:
        """Raises UserError for a character that the vocabulary lacks."""
        try:
            return np.array([self.index[c] for c in text], np.int32)
        except KeyError as e:
            raise UserError(
                f"the character {e.args[0]!r} is not in this model's vocabulary of"
                f" {len(self.characters)} characters: leave it out, or train with"
                " --config.data.tokenizer=byte"
            ) from None

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.characters[t] for t in _until(tokens, self.separator))

    def byte_lengths(self) -> np.ndarray:
        return np.array([len(c.encode("utf-8")) for c in self.characters] + [0])


Tokenizer = ByteTokenizer | CharTokenizer


def _until(tokens: Sequence[int], stop: int) -> list[int]:
    tokens = [int(t) for t in tokens]
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


def make_tokenizer(name: str, documents: Sequence[str]) -> Tokenizer:
    return ByteTokenizer() if name == "byte" else CharTokenizer.of(documents)


def join(documents: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """All documents as one stream of tokens, a separator before each and after the last."""
    separator = np.array([tokenizer.separator], np.int32)
    parts = [part for d in documents for part in (separator, tokenizer.encode(d))]
    return np.concatenate([*parts, separator]).astype(np.int32)


class Windows:
    """A stream as overlapping windows of T + 1 tokens, of which T are predicted.

    Window i predicts the `stride` tokens after position i · stride; the T − stride tokens before
    them are context only, with weight 0, unless nothing came before. With stride = T every token is
    predicted once from its own window.

    Args:
      stream: int32 tokens.
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


def shift_window(window: np.ndarray, stream: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A window of the same length that starts anywhere in the stream."""
    start = rng.integers(0, len(stream) - len(window) + 1)
    return stream[start : start + len(window)]


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
