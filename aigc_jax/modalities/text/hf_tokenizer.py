"""Tokenizers of the `tokenizers` library, trained here or read from a Hugging Face folder.

Shapes: V tokens in the vocabulary.
"""

import contextlib
import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.modalities.text import token_bytes as pieces_lib

END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END, IM_START, IM_END)  # special tokens of tokenizers trained here
MIN_SIZE = 256 + len(SPECIAL)
MAX_SIZE = 1 << 21  # maximum vocabulary of an untrusted file
MAX_AFFIX = 16  # maximum tokens before or after a text
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
CHUNK = 1 << 16  # tokens decoded at once


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Turns any exception of the library into a ValueError."""
    try:
        yield
    except Exception as e:
        raise ValueError(one_line(e)) from e
    except BaseException as e:  # a panic in Rust is not an Exception
        if type(e).__name__ != "PanicException":
            raise
        raise ValueError(one_line(e)) from e


@contextlib.contextmanager
def reported_as(problem: str) -> Iterator[None]:
    """Turns any exception of the library into a UserError that begins with `problem`."""
    try:
        with checked():
            yield
    except ValueError as e:
        raise UserError(f"{problem} ({one_line(e)}): use another text or tokenizer") from e


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library, with the special tokens missing in its JSON.

    Args:
      library: the tokenizer; truncation, padding and dropout are disabled.
      separator: the token between documents.
      stops: tokens that end a generation.
      prefix: tokens before a text.
      suffix: tokens after a text.
      mask: the mask token.

    Raises:
      ValueError: for a token outside the vocabulary, or an empty or absurdly large vocabulary.
    """

    name = "library"

    def __init__(
        self,
        library: tokenizers.Tokenizer,
        *,
        separator: int,
        stops: Sequence[int] = (),
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        mask: int | None = None,
    ):
        self._library = without_truncation(library)
        vocabulary = vocabulary_of(library)
        self.size = max(vocabulary.values()) + 1
        ids = [separator, *stops, *prefix, *suffix, *([] if mask is None else [mask])]
        for i in ids:
            if type(i) is not int or not 0 <= i < self.size:
                raise ValueError(f"the token {shorten(i, 40)} of a vocabulary of {self.size}")
        if max(len(prefix), len(suffix)) > MAX_AFFIX:
            raise ValueError(f"more than {MAX_AFFIX} tokens before or after every text")
        self.separator, self.mask = separator, mask
        self.stops = tuple(dict.fromkeys([separator, *stops]))
        self.prefix, self.suffix = tuple(prefix), tuple(suffix)
        added = library.get_added_tokens_decoder()
        self._added = {token.content: i for i, token in added.items()}
        self._hidden = frozenset([*ids, *(i for i, token in added.items() if token.special)])
        self._never = self._hidden - {_unknown(library)}  # tokens that never occur in encoded text
        self.byte_tokens = frozenset(i for t, i in vocabulary.items() if BYTE_TOKEN.fullmatch(t))
        self.pieces = self._pieces(vocabulary)

    def _pieces(self, vocabulary: dict[str, int]) -> list[bytes] | None:
        if not isinstance(self._library.decoder, decoders.ByteLevel):
            return None
        pieces = pieces_lib.byte_pieces(vocabulary, self.size)
        for i in self._hidden:
            pieces[i] = b""
        return pieces

    @classmethod
    def train(cls, documents: Sequence[str], vocab_size: int) -> "LibraryTokenizer":
        """Learns byte-level BPE, as in GPT-2, from documents; deterministic.

        Args:
          documents: texts.
          vocab_size: maximum number of tokens; there are fewer if no more pairs occur twice.

        Raises:
          UserError: if `vocab_size` is too small for the bytes, or too large.
        """
        if not MIN_SIZE <= vocab_size <= MAX_SIZE:
            raise UserError(
                f"data.vocab_size={vocab_size} is invalid for data.tokenizer=bpe: set it from"
                f" {MIN_SIZE} (bytes and special tokens) to {MAX_SIZE}"
            )
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=pieces_lib.byte_alphabet(),
            show_progress=sys.stderr.isatty(),
        )
        with reported_as("a tokenizer cannot be learned from this text"):
            library.train_from_iterator(documents, trainer, length=len(documents))
        put_in_front(library, END)
        end, stop = (library.get_vocab()[t] for t in (END, IM_END))
        return cls(library, separator=end, stops=(end, stop), prefix=(end,))

    def encode(self, text: str) -> np.ndarray:
        """Encodes text to int32 tokens; special tokens spelled in it are plain text.

        Raises:
          UserError: if the tokenizer cannot encode it.
        """
        pieces_lib.utf8(text)
        ids = self._encode([text])
        special = self._never.intersection(ids)
        if special:
            # The library does not parse special tokens here, but some vocabularies
            # (SentencePiece's) have them as words too: such words are cut after their first
            # character, and dropped where a normalizer has produced them from other characters.
            words = [self._library.id_to_token(i) or "" for i in special]
            cuts = [f"(?<={re.escape(w[:1])})(?={re.escape(w[1:])})" for w in words]
            ids = [i for i in self._encode(re.split("|".join(cuts), text)) if i not in self._never]
        return np.array(ids, np.int32)

    def _encode(self, texts: list[str]) -> list[int]:
        with reported_as("the text cannot be encoded"):
            # encode_batch_fast takes a third of the time, as it omits the offsets of tokens.
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
            return [i for encoding in encodings for i in encoding.ids]

    def decode(self, tokens: Iterable[int]) -> str:
        """Decodes up to the first of `stops`, without special tokens; invalid UTF-8 becomes �."""
        return self.text(pieces_lib.until(tokens, self.stops))

    def text(self, tokens: Sequence[int]) -> str:
        """Decodes all tokens, without special ones."""
        if self.pieces is not None:
            return pieces_lib.bytes_of(self.pieces, tokens).decode("utf-8", errors="replace")
        with reported_as("the tokens cannot be decoded"):
            return self._library.decode(self.plain(tokens), skip_special_tokens=False)

    def plain(self, tokens: Iterable[int]) -> list[int]:
        """Returns the tokens that are not special."""
        return [t for t in tokens if 0 <= t < self.size and t not in self._hidden]

    def byte_lengths(self) -> np.ndarray:
        """Returns the number of bytes of each token's text within a text, (V,)."""
        if self.pieces is not None:
            return np.array([len(piece) for piece in self.pieces])
        lengths = np.zeros(self.size, np.int64)
        plain = self.plain(range(self.size))
        word = self._word(plain)
        for first in range(0, len(plain), CHUNK):
            ids = plain[first : first + CHUNK]
            with reported_as("the tokens cannot be decoded"):
                texts = self._library.decode_batch(
                    [word * 2, *([*word, i, *word] for i in ids)], skip_special_tokens=False
                )
            size = [len(text.encode("utf-8")) for text in texts]
            lengths[ids] = np.maximum(np.array(size[1:]) - size[0], 0)
        lengths[sorted(self.byte_tokens)] = 1
        return lengths

    def _word(self, plain: list[int]) -> list[int]:
        """Returns a token that is a plain word, as a list; [] if there is none."""
        for i in plain:
            token = self._library.id_to_token(i)
            if token and token.isascii() and token.isalnum():
                return [i]
        return []

    def special(self, text: str) -> tuple[int, ...]:
        """Returns a special token by its text; the encoded text if there is none."""
        return (self._added[text],) if text in self._added else tuple(self.encode(text).tolist())

    @functools.cached_property
    def _json(self) -> str:
        return self._library.to_str()

    def to_json(self) -> dict[str, Any]:
        library = {
            "json": self._json,
            "separator": self.separator,
            "stops": list(self.stops),
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
            "mask": self.mask,
        }
        return {"tokenizer": self.name, "library": library}

    @classmethod
    def from_json(cls, value: Any) -> "LibraryTokenizer":
        """Builds the tokenizer from the value "library" of `to_json`.

        Raises:
          KeyError, TypeError, ValueError: if it does not describe a tokenizer.
        """
        lists = {k: value[k] for k in ("stops", "prefix", "suffix")}
        if not all(isinstance(v, list) for v in lists.values()):
            raise ValueError("special tokens that are not lists")
        return cls(
            parse_tokenizer(value["json"]),
            separator=value["separator"],
            mask=value["mask"],
            **lists,
        )

    def to_library(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self._json)


def parse_tokenizer(text: Any) -> tokenizers.Tokenizer:
    """Parses an untrusted tokenizer.json.

    Raises:
      ValueError: if it is not a tokenizer.
    """
    if not isinstance(text, str):
        raise ValueError("a tokenizer that is not text")
    with checked():
        return tokenizers.Tokenizer.from_str(text)


def vocabulary_of(library: tokenizers.Tokenizer) -> dict[str, int]:
    """Returns all tokens by their text; ValueError if there are none, or absurdly many."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    if not vocabulary or max(vocabulary.values()) >= MAX_SIZE:
        raise ValueError(f"a vocabulary of {max(vocabulary.values(), default=-1) + 1} tokens")
    return vocabulary


def _unknown(library: tokenizers.Tokenizer) -> int | None:
    """Returns the token for unknown text, which is special but occurs in encoded text."""
    if isinstance(library.model, models.Unigram):
        return json.loads(library.to_str())["model"].get("unk_id")
    word = getattr(library.model, "unk_token", None)
    return None if word is None else library.token_to_id(word)


def put_in_front(library: tokenizers.Tokenizer, special: str) -> tokenizers.Tokenizer:
    """Makes `special` a special token that is added before every text, as in training."""
    library.add_special_tokens([AddedToken(special, normalized=False, special=True)])
    library.post_processor = processors.TemplateProcessing(
        single=f"{special} $A",
        pair=f"{special} $A {special} $B",
        special_tokens=[(special, library.token_to_id(special))],
    )
    return library


def without_truncation(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Disables truncation, padding and dropout, so that tokens depend on the text alone."""
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    if getattr(library.model, "dropout", None):
        library.model.dropout = None
    return library
