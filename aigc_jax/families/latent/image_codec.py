"""The vocabulary of an image codec, in the form of a text tokenizer."""

from typing import Any

import numpy as np


class ImageCodec:
    """The tokens of images that a discrete autoencoder has encoded.

    Tokens 0 … `num_codes` − 1 are codes. After them comes one token per class, with which an image
    begins, or a single one if there are no classes.

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
        """Zeros (size,): a code stands for no bytes of text."""
        return np.zeros(self.size, np.int64)

    def encode(self, text: str) -> np.ndarray:
        """An empty array: no text precedes an image."""
        return np.zeros(0, np.int32)

    def decode(self, tokens: Any) -> str:
        """The numbers of the tokens, separated by spaces."""
        return " ".join(map(str, np.asarray(tokens).tolist()))

    text = decode
