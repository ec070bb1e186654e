"""Bytes of tokens; a character may be split over several tokens."""

from collections.abc import Collection, Iterable, Sequence

from aigc_jax.core.errors import UserError


def utf8(text: str) -> bytes:
    """Encodes text as UTF-8; UserError for a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise UserError(f"the text is not valid Unicode (at character {e.start})") from e


def until(tokens: Iterable[int], stops: Collection[int]) -> list[int]:
    """Returns the tokens before the first of `stops`."""
    kept = []
    for token in map(int, tokens):
        if token in stops:
            break
        kept.append(token)
    return kept


def bytes_of(pieces: Sequence[bytes], tokens: Iterable[int]) -> bytes:
    """Joins the bytes of tokens; tokens beyond `pieces` (padded vocabularies) have none."""
    return b"".join(pieces[t] for t in tokens if 0 <= t < len(pieces))


def byte_alphabet() -> list[str]:
    """Returns the character that byte-level BPE uses for each byte, (256,) (Radford et al. 2019).

    Printable bytes of Latin-1 are unchanged, the others are code points from 256.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in plain)
    characters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [characters[b] for b in range(256)]


def byte_pieces(vocabulary: dict[str, int], size: int) -> list[bytes]:
    """Returns the bytes of each token of a byte-level vocabulary, (V,).

    A token with a character outside the alphabet is an added token, encoded as UTF-8.
    """
    byte = {c: b for b, c in enumerate(byte_alphabet())}
    pieces = [b""] * size
    for token, i in vocabulary.items():
        known = all(c in byte for c in token)
        pieces[i] = bytes(byte[c] for c in token) if known else token.encode("utf-8")
    return pieces
