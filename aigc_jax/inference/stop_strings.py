"""Stop strings: strings before which a text ends, and streaming of a text while it is written.

Shapes: N texts, T tokens so far.
"""

from collections.abc import Callable, Sequence

import numpy as np

from aigc_jax.modalities.text.tokenizers import TextStream, Tokenizer


def stop_index(text: str, stops: Sequence[str]) -> int | None:
    """The index at which the first stop string in `text` begins; None if there is none."""
    return min((at for at in map(text.find, stops) if at >= 0), default=None)


def truncate_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: stop_index(text, stops)]


class StopStringStreamer:
    """A `TokenCallback` that ends rows at stop strings and streams the text of the first row.

    Args:
      tokenizer: of the tokens.
      stops: strings before which a text ends.
      show: is given the next piece of the first text, and nothing of a stop string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        show: Callable[[str], None] | None = None,
    ):
        self._tokenizer, self._stops, self._show = tokenizer, tuple(stops), show
        self._rows: list[TextRow] = []

    def __call__(self, token_NT: np.ndarray) -> np.ndarray:
        """The rows that have ended (N,), from all tokens so far."""
        if not self._rows:
            self._rows = [TextRow(self._tokenizer, self._stops) for _ in token_NT]
        ended = [row.update(tokens) for row, tokens in zip(self._rows, token_NT, strict=True)]
        if self._show:
            self._show(self._rows[0].delta())
        return np.array(ended)

    def close(self) -> None:
        """Shows what was held back because it could have become a stop string."""
        if self._show and self._rows:
            self._show(self._rows[0].finish())


class TextRow:
    """One text as its tokens come.

    Attributes:
      text: so far, without what follows a stop string.
      ended: whether a stop token or a stop string has come.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self._stream, self._stop_tokens = TextStream(tokenizer), set(tokenizer.stops)
        self._stops, self._shown, self._read = tuple(stops), 0, 0
        self.text, self.ended = "", False

    def update(self, tokens: np.ndarray) -> bool:
        """Reads the tokens behind those that were read before; returns `ended`."""
        new, self._read = tokens[self._read :].tolist(), len(tokens)
        if self.ended:
            return True
        for token in new:
            if token in self._stop_tokens:
                self.text, self.ended = self.text + self._stream.finish(), True
                break
            self.text += self._stream.feed([token])
        self._truncate()
        return self.ended

    def _truncate(self) -> None:
        at = stop_index(self.text, self._stops)
        if at is not None:
            self.text, self.ended = self.text[:at], True

    def delta(self) -> str:
        """The new text that can be shown: not the beginning of what may become a stop string."""
        end = len(self.text)
        if not self.ended:
            longest = max(map(len, self._stops), default=1) - 1
            for start in range(max(end - longest, 0), end):
                if any(stop.startswith(self.text[start:]) for stop in self._stops):
                    end = start
                    break
        piece, self._shown = self.text[self._shown : end], max(end, self._shown)
        return piece

    def finish(self) -> str:
        """Ends the text; returns what has not been shown."""
        if not self.ended:
            self.text, self.ended = self.text + self._stream.finish(), True
            self._truncate()
        return self.delta()
