"""Tokenizers: bytes, characters, and those of the `tokenizers` library.

Shapes: V tokens in the vocabulary.
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import tokenizers

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.modalities.text import tokenizer_files
from aigc_jax.modalities.text.hf_tokenizer import END, LibraryTokenizer, put_in_front
from aigc_jax.modalities.text.token_bytes import byte_alphabet, bytes_of, until, utf8

KINDS = ("byte", "char", "bpe", "file:PATH", "workdir:DIR")


class Tokenizer(Protocol):
    """Converts text to tokens and back.

    Attributes:
      name: byte, char or library.
      size: V.
      separator: the token between documents.
      stops: tokens that end a generation, including the separator.
      prefix: tokens before a prompt.
      suffix: tokens after a text, such as BERT's [SEP].
      mask: the mask token, if there is one.
      pieces: bytes of each token, (V,), empty for special ones; None if they depend on neighbouring
        tokens.
    """

    name: str
    size: int
    separator: int
    stops: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    mask: int | None
    pieces: list[bytes] | None

    def encode(self, text: str) -> np.ndarray:
        """Encodes text to int32 tokens; special tokens spelled in it are plain text."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Decodes up to the first of `stops`, without special tokens; invalid UTF-8 becomes �."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Decodes all tokens, without special ones."""
        ...

    def byte_lengths(self) -> np.ndarray:
        """Returns the number of bytes of each token's text, (V,)."""
        ...

    def special(self, text: str) -> tuple[int, ...]:
        """Returns a special token by its text; the encoded text if there is none."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; the inverse of `from_json`."""
        ...

    def to_library(self) -> tokenizers.Tokenizer:
        """Converts it to the `tokenizers` library, whose JSON other programs can read."""
        ...


class _Table:
    """Tokenizer with a table of pieces of text; its last token is the separator."""

    suffix: tuple[int, ...] = ()
    mask: int | None = None

    def __init__(self, pieces: list[bytes]):
        self.pieces: list[bytes] | None = [*pieces, b""]
        self.size = len(pieces) + 1
        self.separator = self.size - 1
        self.stops: tuple[int, ...] = (self.separator,)
        self.prefix: tuple[int, ...] = (self.separator,)

    def encode(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def decode(self, tokens: Iterable[int]) -> str:
        """Decodes up to the first separator; invalid UTF-8 becomes �."""
        return self.text(until(tokens, self.stops))

    def text(self, tokens: Sequence[int]) -> str:
        return bytes_of(self.pieces or [], tokens).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        return np.array([len(piece) for piece in self.pieces or []])

    def special(self, text: str) -> tuple[int, ...]:
        return tuple(self.encode(text).tolist())


class ByteTokenizer(_Table):
    """Tokenizer of UTF-8 bytes, with a separator between documents."""

    name = "byte"
    size = 257
    separator = 256

    def __init__(self):
        super().__init__([bytes([b]) for b in range(256)])

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        return {"tokenizer": self.name, "characters": []}

    def to_library(self) -> tokenizers.Tokenizer:
        vocabulary = {c: b for b, c in enumerate(byte_alphabet())}
        library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
        library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = tokenizers.decoders.ByteLevel()
        return put_in_front(library, END)


class CharTokenizer(_Table):
    """Tokenizer of the characters of a text, with a separator between documents."""

    name = "char"

    def __init__(self, characters: Sequence[str]):
        self.characters = list(characters)
        self.index = {c: i for i, c in enumerate(self.characters)}
        super().__init__([c.encode("utf-8") for c in self.characters])

    @classmethod
    def of(cls, documents: Sequence[str]) -> "CharTokenizer":
        for document in documents:
            utf8(document)
        return cls(sorted(set().union(*documents)))

    def encode(self, text: str) -> np.ndarray:
        """Encodes text; UserError for a character that is not in the vocabulary."""
        try:
            return np.array([self.index[c] for c in text], np.int32)
        except KeyError as e:
            raise UserError(
                f"the character {e.args[0]!r} is not in this model's vocabulary of"
                f" {len(self.characters)} characters: remove it, or train with"
                " --config.data.tokenizer=byte"
            ) from None

    def to_json(self) -> dict[str, Any]:
        return {"tokenizer": self.name, "characters": self.characters}

    def to_library(self) -> tokenizers.Tokenizer:
        # Without <unk> in the vocabulary an unknown character is an error there too.
        model = tokenizers.models.WordLevel(vocab=dict(self.index), unk_token="<unk>")
        library = tokenizers.Tokenizer(model)
        every = tokenizers.Regex(r"[\s\S]")
        library.pre_tokenizer = tokenizers.pre_tokenizers.Split(every, "isolated")
        library.decoder = tokenizers.decoders.Fuse()
        return put_in_front(library, END)


def make_tokenizer(name: str, documents: Sequence[str], vocab_size: int = 0) -> Tokenizer:
    """Makes the tokenizer of `data.tokenizer`.

    Args:
      name: byte; char: the characters of the documents; bpe: byte-level BPE learned from them;
        file:PATH: a tokenizer.json or a Hugging Face folder.
      documents: texts for char and bpe.
      vocab_size: maximum number of tokens for bpe.

    Raises:
      UserError: for an unknown name, or an invalid file or size.
    """
    kind, _, argument = name.partition(":")
    if kind == "file" and argument:
        return tokenizer_files.read_tokenizer(argument)
    if name == "byte":
        return ByteTokenizer()
    if name == "char":
        return CharTokenizer.of(documents)
    if name == "bpe":
        return LibraryTokenizer.train(documents, vocab_size)
    raise UserError(
        f"there is no data.tokenizer '{shorten(name)}': {did_you_mean(shorten(kind, 40), KINDS)}"
    )


def from_json(value: dict[str, Any]) -> Tokenizer:
    """Builds a tokenizer from the output of `to_json`, which is not trusted.

    Raises:
      KeyError, TypeError, ValueError: if it does not describe a tokenizer.
    """
    name, characters = value["tokenizer"], value.get("characters", [])
    if name == LibraryTokenizer.name:
        return LibraryTokenizer.from_json(value["library"])
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    if name != CharTokenizer.name:
        raise ValueError(f"the tokenizer {shorten(name, 40)}")
    strings = isinstance(characters, list) and all(isinstance(c, str) for c in characters)
    if not strings or any(len(c) != 1 for c in characters):
        raise ValueError("characters that are not characters")
    if len(set(characters)) < len(characters):
        raise ValueError("a character twice")
    return CharTokenizer(characters)  # ValueError for a lone surrogate


class TextStream:
    """Incremental decoder: `feed` and `finish` together return `decode` of all tokens.

    A character is held back until it is complete.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._ended = tokenizer, False
        pieces = tokenizer.pieces
        self._stream: _Windows | _Bytes = (
            _Windows(cast(LibraryTokenizer, tokenizer)) if pieces is None else _Bytes(pieces)
        )

    def feed(self, tokens: Iterable[int]) -> str:
        """Returns the text that these tokens complete; "" after one of the tokenizer's `stops`."""
        tokens = [] if self._ended else [int(t) for t in tokens]
        kept = until(tokens, self._tokenizer.stops)
        self._ended = self._ended or len(kept) < len(tokens)
        return self._stream.feed(kept)

    def finish(self) -> str:
        """Returns the text that was held back."""
        self._ended = True
        return self._stream.feed([], final=True)


class _Bytes:
    """Incremental decoder of tokens with fixed bytes."""

    def __init__(self, pieces: list[bytes]):
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: list[int], final: bool = False) -> str:
        return self._decoder.decode(bytes_of(self._pieces, tokens), final)


class _Windows:
    """Incremental decoder of tokens whose text depends on the previous one, such as '▁a', '##ing'.

    New tokens are decoded together with the last ones that produced text, which is then removed.
    """

    def __init__(self, tokenizer: LibraryTokenizer):
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._held: list[int] = []

    def feed(self, tokens: list[int], final: bool = False) -> str:
        self._held += self._tokenizer.plain(tokens)
        # A run of byte tokens is decoded at its end, since one invalid byte turns all of it into �.
        if not self._held or (self._held[-1] in self._tokenizer.byte_tokens and not final):
            return ""
        old = self._tokenizer.text(self._before)
        text = self._tokenizer.text(self._before + self._held)
        if not final and (len(text) <= len(old) or text.endswith("�")):
            return ""
        self._before, self._held = self._held, []
        return text[len(old) :]
