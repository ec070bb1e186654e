"""Looking at texts while they are drawn: to show them, and to end them at a string.

Shapes: N texts, T tokens so far.
"""

from collections.abc import Callable, Sequence

import numpy as np

from aigc_jax.modalities.text.tokenizers import TextStream, Tokenizer


class StopStringStreamer:
    """Ends a row when its text holds a stop string; shows the first row's text as it grows.

    Args:
      tokenizer: of the tokens.
      stops: strings before which a text ends.
      show: is given the next piece of the first text; nothing of a stop string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        show: Callable[[str], None] | None = None,
    ):
        self._tokenizer, self._stops, self._show = tokenizer, tuple(stops), show
        self._rows: list[_Row] = []

    def __call__(self, token_NT: np.ndarray) -> np.ndarray:
        """The rows that have ended (N,); called with all tokens so far."""
        if not self._rows:
            self._rows = [_Row(self._tokenizer, self._stops) for _ in token_NT]
        ended = np.array(
            [row.take(tokens) for row, tokens in zip(self._rows, token_NT, strict=True)]
        )
        if self._show:
            self._show(self._rows[0].news())
        return ended

    def close(self) -> None:
        """Shows what was held back in case it became a stop string."""
        if self._show and self._rows:
            self._show(self._rows[0].finish())


class _Row:
    """One text as it grows."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]):
        self._stream, self._ends = TextStream(tokenizer), set(tokenizer.stops)
        self._stops, self.text, self._shown, self._taken = stops, "", 0, 0
        self.ended = False

    def take(self, tokens: np.ndarray) -> bool:
        """Adds the tokens after those that it has; whether the text has ended."""
        new, self._taken = tokens[self._taken :].tolist(), len(tokens)
        if self.ended:
            return True
        for token in new:
            if token in self._ends:
                self.text, self.ended = self.text + self._stream.finish(), True
                break
            self.text += self._stream.feed([token])
        self._cut()
        return self.ended

    def _cut(self) -> None:
        """Ends the text before the first stop string in it."""
        found = [at for at in map(self.text.find, self._stops) if at >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], True

    def news(self) -> str:
        """What can be shown: not the beginning of what may become a stop string."""
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
        if not self.ended:
            self.text, self.ended = self.text + self._stream.finish(), True
            self._cut()
        return self.news()
