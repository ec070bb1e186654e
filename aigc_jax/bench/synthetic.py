"""Random data of a given shape, to time a config whose data are not here."""

import re

import numpy as np

from aigc_jax.config import Config
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.sources import Images
from aigc_jax.data.spec import ImageSpec, TextSpec
from aigc_jax.data.text import Windows
from aigc_jax.data.tokenizers import ByteTokenizer
from aigc_jax.errors import UserError

IMAGES = re.compile(r"(latents:)?(\d+)x(\d+)x(\d+)(?::(\d+))?")
BATCHES = 4  # that differ
TOKENS = 1 << 20


def synthetic(shape: str, config: Config) -> Dataset:
    """A data set of random examples, read through the same pipeline as a real one.

    Args:
      shape: "text", "32x32x3" or "32x32x3:10" (height, width, channels and classes), with
        "latents:" before it for an autoencoder's latents.
      config: what is timed.

    Raises:
      UserError: if it is none of these.
    """
    rng = np.random.default_rng(0)
    if shape == "text":
        tokenizer, length = ByteTokenizer(), config.data.seq_len
        entries = getattr(config.model, "vocab_size", 0) or tokenizer.size
        stream = rng.integers(0, entries, max(TOKENS, 2 * length)).astype(np.int32)
        windows = Windows(stream, length)
        return Dataset(TextSpec(tokenizer, length), windows, windows)
    found = IMAGES.fullmatch(shape)
    if not found:
        raise UserError(
            f"--synthetic={shape} is no shape of data: write text, or height, width and channels as"
            " in 32x32x3, and classes behind them as in 32x32x3:10"
        )
    latents, *sizes, classes = found.groups()
    size, count = tuple(map(int, sizes)), BATCHES * config.data.batch_size
    whole = {"image": rng.integers(0, 256, (count, *size), np.uint8)}
    if latents:
        whole["image"] = rng.standard_normal((count, *size), np.float32)
    if classes:
        whole["label"] = rng.integers(0, int(classes), count)
    names = tuple(map(str, range(int(classes or 0))))
    images = Images(lambda i: (whole["image"][i], None), np.arange(count), whole)
    return Dataset(ImageSpec(size, names, continuous=bool(latents)), images, images)
