"""Tokenizers of the `tokenizers` library: trained here, or read from a Hugging Face folder.

V is the number of tokens.
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
SPECIAL = (END, IM_START, IM_END)  # of tokenizers trained here
MIN_SIZE = 256 + len(SPECIAL)
MAX_SIZE = 1 << 21  # tokens; a file may claim any number
MAX_AFFIX = 16  # tokens before or after a text
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
def usable(problem: str) -> Iterator[None]:
    """Turns any exception of the library into a UserError that begins with `problem`."""
    try:
        with checked():
            yield
    except ValueError as e:
        raise UserError(f"{problem} ({one_line(e)}): take another text or tokenizer") from e


class LibraryTokenizer:
    """A tokenizer of the library, with the special tokens that its JSON does not name.

    Args:
      library: the tokenizer; its settings for truncation, padding and dropout are switched off.
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
        self._never = self._hidden - {_unknown(library)}  # tokens that no text is encoded as
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
        """Byte-level BPE as in GPT-2, learned from documents; the same ones give the same tokens.

        Args:
          documents: texts.
          vocab_size: the most tokens; there are fewer if no more pairs occur twice.

        Raises:
          UserError: if the bytes alone are more tokens than that.
        """
        if not MIN_SIZE <= vocab_size <= MAX_SIZE:
            raise UserError(
                f"data.vocab_size={vocab_size} is not a size for data.tokenizer=bpe: the bytes and"
                f" special tokens alone are {MIN_SIZE}, and {MAX_SIZE} is the most"
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
        with usable("no tokenizer can be learned from this text"):
            library.train_from_iterator(documents, trainer, length=len(documents))
        put_in_front(library, END)
        end, stop = (library.get_vocab()[t] for t in (END, IM_END))
        return cls(library, separator=end, stops=(end, stop), prefix=(end,))

    def encode(self, text: str) -> np.ndarray:
        """The tokens of the text, int32; special tokens spelled in it are plain text.

        Raises:
          UserError: if the tokenizer cannot take it.
        """
        pieces_lib.utf8(text)
        ids = self._encode([text])
        special = self._never.intersection(ids)
        if special:
            # The library parses no special tokens here, but some vocabularies have them as words
            # too (SentencePiece's): such words are cut after their first character, and left out
            # where a normalizer has made them of other characters.
            words = [self._library.id_to_token(i) or "" for i in special]
            cuts = [f"(?<={re.escape(w[:1])})(?={re.escape(w[1:])})" for w in words]
            ids = [i for i in self._encode(re.split("|".join(cuts), text)) if i not in self._never]
        return np.array(ids, np.int32)

    def _encode(self, texts: list[str]) -> list[int]:
        with usable("the text cannot be made into tokens"):
            # Batches take a third of the time: they leave out where each token stood.
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
            return [i for encoding in encodings for i in encoding.ids]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text up to the first of `stops`, special tokens left out; broken UTF-8 becomes �."""
        return self.text(pieces_lib.until(tokens, self.stops))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of all tokens, special ones left out."""
        if self.pieces is not None:
            return pieces_lib.bytes_of(self.pieces, tokens).decode("utf-8", errors="replace")
        with usable("the tokens cannot be made into text"):
            return self._library.decode(self.plain(tokens), skip_special_tokens=False)

    def plain(self, tokens: Iterable[int]) -> list[int]:
        """The tokens that are not special."""
        return [t for t in tokens if 0 <= t < self.size and t not in self._hidden]

    def byte_lengths(self) -> np.ndarray:
        """Number of bytes of text of each token between two others, (V,)."""
        if self.pieces is not None:
            return np.array([len(piece) for piece in self.pieces])
        lengths = np.zeros(self.size, np.int64)
        plain = self.plain(range(self.size))
        beside = self._word(plain)
        for first in range(0, len(plain), CHUNK):
            ids = plain[first : first + CHUNK]
            with usable("the tokens cannot be made into text"):
                texts = self._library.decode_batch(
                    [beside * 2, *([*beside, i, *beside] for i in ids)], skip_special_tokens=False
                )
            size = [len(text.encode("utf-8")) for text in texts]
            lengths[ids] = np.maximum(np.array(size[1:]) - size[0], 0)
        lengths[sorted(self.byte_tokens)] = 1
        return lengths

    def _word(self, plain: list[int]) -> list[int]:
        """A token that is a plain word, or none."""
        for i in plain:
            token = self._library.id_to_token(i)
            if token and token.isascii() and token.isalnum():
                return [i]
        return []

    def special(self, text: str) -> tuple[int, ...]:
        """A special token by its name; the name spelled out if there is none."""
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
        """The inverse of `to_json`'s "library".

        Raises:
          KeyError, TypeError, ValueError: if it does not describe a tokenizer.
        """
        lists = {k: value[k] for k in ("stops", "prefix", "suffix")}
        if not all(isinstance(v, list) for v in lists.values()):
            raise ValueError("special tokens that are not lists")
        return cls(parse(value["json"]), separator=value["separator"], mask=value["mask"], **lists)

    def to_library(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self._json)


def parse(text: Any) -> tokenizers.Tokenizer:
    """Parses an untrusted tokenizer.json.

    Raises:
      ValueError: if it is not a tokenizer.
    """
    if not isinstance(text, str):
        raise ValueError("a tokenizer that is not text")
    with checked():
        return tokenizers.Tokenizer.from_str(text)


def vocabulary_of(library: tokenizers.Tokenizer) -> dict[str, int]:
    """All tokens by their text; ValueError for none, or absurdly many."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    if not vocabulary or max(vocabulary.values()) >= MAX_SIZE:
        raise ValueError(f"a vocabulary of {max(vocabulary.values(), default=-1) + 1} tokens")
    return vocabulary


def _unknown(library: tokenizers.Tokenizer) -> int | None:
    """The token for unknown text; it is special, but text may be encoded as it."""
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
