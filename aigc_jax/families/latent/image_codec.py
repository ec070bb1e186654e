"""Images as sequences of code numbers, for models of tokens."""

from typing import Any

import numpy as np


class ImageCodec:
    """What a text model must know of the codes of a discrete autoencoder.

    Tokens 0 … `num_codes` − 1 are codes; behind them comes one token for each class, with which an
    image begins, or a single one if there are no classes.

    Args:
      num_codes: entries of the codebook.
      num_classes: K; 0 for images without classes.
    """

    stops: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    mask: int | None = None

    def __init__(self, num_codes: int, num_classes: int):
        self.num_codes = self.separator = num_codes
        self.size = num_codes + max(num_classes, 1)

    def byte_lengths(self) -> np.ndarray:
        """Codes stand for no bytes."""
        return np.zeros(self.size, np.int64)

    def encode(self, text: str) -> np.ndarray:
        """There is no text before an image: nothing."""
        return np.zeros(0, np.int32)

    def decode(self, tokens: Any) -> str:
        """The numbers, for people."""
        return " ".join(map(str, np.asarray(tokens).tolist()))

    text = decode
